// SPDX-License-Identifier: MIT OR GPL-2.0
//
// The lease fence: a tc classifier that keeps this host silent for a virtual address whose lease is not
// running. It asks the kernel clock for every frame, so it closes by itself: no process has to be alive.
//
//   egress:  ARP sender address, IPv4 source, IPv6 source, target of a Neighbor Advertisement
//   ingress: IPv4 and IPv6 destination. ARP and Neighbor Discovery are let in, so that this host learns
//            of the next owner like every other neighbour. (A unicast Neighbor Solicitation to the address
//            itself is dropped with the rest; one to the multicast group comes in, its answer stays in.)
//
// An address that is not in `vips` is none of our business and passes at once.
//
// Containers and virtual machines behind this host talk to the owner of the address through it, so frames
// that this host only carries pass, also while the address is shut. They are told from its own like this:
//
//   egress:  the frame came in from outside (ingress_ifindex), and it spoke for this very address when it
//            did: the ingress program leaves a mark in tc_index, which every frame that this host makes has
//            at 0, and which forwarding, bridging and fragmenting keep. ingress_ifindex alone would not do:
//            destination NAT (a published container port, IPVS) turns the frames of a backend into answers
//            of the address, and they came in from outside too. Theirs came in with another source.
//   ingress: the frame is not for this host's Ethernet address (it is bridged; where a bridge, VLAN or
//            macvlan of this host takes it, it is judged again there), or the host's routes send it on
//            through another interface. What the host would take itself is dropped although its answer
//            could not leave: a request that is served and not answered is served twice. The same goes for
//            a frame that would leave where it came in: its sender takes this host for the owner, and a
//            NAT that still knows the connection would serve it.
//
// In doubt a frame is stopped. So these stay out although they are carried: frames from the address that came
// in over an interface without this program (tunnels without Ethernet header), those whose mark another filter
// overwrote (tc writes tc_index when a filter behind this one ends with "ok"), proxy ARP for the address, and
// detours through this host between two neighbours on one interface.
//
// No header is included, on purpose: the object then depends on the compiler alone, and build.sh can prove
// that the committed object is what this source says.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define UINT(name, value) int(*name)[value]
#define TYPE(name, value) typeof(value) *name

// linux/bpf.h, linux/pkt_cls.h: kernel ABI
enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2 };
enum { TC_ACT_UNSPEC = -1, TC_ACT_SHOT = 2 };
enum { LIBBPF_PIN_BY_NAME = 1 };
enum { PACKET_OTHERHOST = 3 }; // linux/if_packet.h
enum { AF_INET = 2, AF_INET6 = 10 };
struct __sk_buff {
    u32 len;
    u32 pkt_type;
    u32 mark;
    u32 queue_mapping;
    u32 protocol;
    u32 vlan_present;
    u32 vlan_tci;
    u32 vlan_proto;
    u32 priority;
    u32 ingress_ifindex;
    u32 ifindex;
    u32 tc_index; // 16 bits are kept
};
// Of bpf_fib_lookup. These answers have `ifindex` set to where the frame would leave (NO_NEIGH since 5.10).
enum { BPF_FIB_LKUP_RET_SUCCESS = 0, BPF_FIB_LKUP_RET_NO_NEIGH = 7, BPF_FIB_LKUP_RET_FRAG_NEEDED = 8 };
struct bpf_fib_lookup {
    u8 family;
    u8 l4_protocol;
    u16 sport;
    u16 dport;
    u16 tot_len;
    u32 ifindex;
    u32 flowinfo;
    u32 source[4];
    u32 destination[4];
    u32 vlan;
    u8 macs[12];
};
_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "kernel ABI");
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, u32 offset, void *to, u32 len) = (void *)26;
static long (*bpf_fib_lookup)(struct __sk_buff *skb, struct bpf_fib_lookup *query, int len, u32 flags) = (void *)69;
static u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) __builtin_bswap16(x)
#define BE32(x) __builtin_bswap32(x)
#else
#define BE16(x) (x)
#define BE32(x) (x)
#endif

enum {
    ETHERTYPE_AT = 12,
    TAG_LEN = 4,
    ETH_P_IP = 0x0800,
    ETH_P_ARP = 0x0806,
    ETH_P_IPV6 = 0x86dd,
    ETH_P_8021Q = 0x8100,
    ETH_P_8021AD = 0x88a8,
    NEXT_HEADER_ICMPV6 = 58,
    NEIGHBOR_ADVERTISEMENT = 136,
    LEASES = 16,
    MAX_VIPS = 16384,
};

// An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d.
struct address {
    u32 word[4];
};

struct counters {
    u64 passed;       // frames let through while the lease ran; not those that were only carried
    u64 dropped;      // frames stopped
    u64 last_pass_ns; // CLOCK_BOOTTIME of the newest frame let through
};

// Which lease an address is held under: an index into `leases`; 0 = known and shut.
struct {
    UINT(type, BPF_MAP_TYPE_HASH);
    UINT(max_entries, MAX_VIPS);
    UINT(pinning, LIBBPF_PIN_BY_NAME);
    TYPE(key, struct address);
    TYPE(value, u64);
} vips SEC(".maps");

// Beside `vips` and not in its value, so that holding and shutting an address (a plain overwrite, the fastest
// and the only safe order) never loses a count.
struct {
    UINT(type, BPF_MAP_TYPE_HASH);
    UINT(max_entries, MAX_VIPS);
    UINT(pinning, LIBBPF_PIN_BY_NAME);
    TYPE(key, struct address);
    TYPE(value, struct counters);
} counters SEC(".maps");

// Deadlines in CLOCK_BOOTTIME nanoseconds; 0 = never. Entry 0 stays 0. One write here renews every address
// that is held under the lease.
struct {
    UINT(type, BPF_MAP_TYPE_ARRAY);
    UINT(max_entries, LEASES);
    UINT(pinning, LIBBPF_PIN_BY_NAME);
    TYPE(key, u32);
    TYPE(value, u64);
} leases SEC(".maps");

INLINE int running(u64 slot, u64 now)
{
    u32 index = (u32)slot;
    u64 *deadline;

    if (index == 0)
        return 0;
    deadline = bpf_map_lookup_elem(&leases, &index); // null for an index that no lease can have: shut
    return deadline && now < *(volatile u64 *)deadline;
}

INLINE void count_drop(struct counters *count)
{
    if (count)
        __sync_fetch_and_add(&count->dropped, 1);
}

// Whether the lease of an address runs now; counts the frame if so.
INLINE int pass(u64 slot, struct counters *count)
{
    u64 now = bpf_ktime_get_boot_ns();

    if (!running(slot, now))
        return 0;
    if (count) {
        __sync_fetch_and_add(&count->passed, 1);
        *(volatile u64 *)&count->last_pass_ns = now;
    }
    return 1;
}

// Never 0, which is what every frame begins with.
INLINE u32 mark_of(const struct address *address)
{
    u32 folded = address->word[0] ^ address->word[1] ^ address->word[2] ^ address->word[3];

    return (folded * 0x9e3779b1u) >> 16 | 1;
}

// Reads an address; false for a frame that is too short to carry it, and so cannot speak for it.
INLINE int load4(const struct __sk_buff *skb, u32 at, struct address *to)
{
    to->word[0] = 0;
    to->word[1] = 0;
    to->word[2] = BE32(0xffff);
    return !bpf_skb_load_bytes(skb, at, &to->word[3], 4);
}

INLINE int load6(const struct __sk_buff *skb, u32 at, struct address *to)
{
    return !bpf_skb_load_bytes(skb, at, to, 16);
}

// The frame leaves and speaks for the address. Not TC_ACT_OK when it may: filters of others behind this one
// still have their say.
INLINE int leaves(struct __sk_buff *skb, const struct address *address)
{
    u64 *slot = bpf_map_lookup_elem(&vips, address);
    struct counters *count;

    if (!slot)
        return TC_ACT_UNSPEC;
    if (skb->ingress_ifindex && skb->tc_index == mark_of(address))
        return TC_ACT_UNSPEC;
    count = bpf_map_lookup_elem(&counters, address);
    if (pass(*(volatile u64 *)slot, count))
        return TC_ACT_UNSPEC;
    count_drop(count);
    return TC_ACT_SHOT;
}

// The frame comes in and speaks for the address.
INLINE void speaks(struct __sk_buff *skb, const struct address *address)
{
    if (bpf_map_lookup_elem(&vips, address))
        skb->tc_index = mark_of(address);
}

// Whether this host carries a frame that comes in, and does not take it.
INLINE int carried(struct __sk_buff *skb, u8 family, const struct address *from, const struct address *to)
{
    struct bpf_fib_lookup query = {.family = family, .ifindex = skb->ifindex};
    long result;

    if (skb->pkt_type == PACKET_OTHERHOST)
        return 1;
    if (family == AF_INET) {
        query.source[0] = from->word[3];
        query.destination[0] = to->word[3];
    } else {
        for (int word = 0; word < 4; word++) {
            query.source[word] = from->word[word];
            query.destination[word] = to->word[word];
        }
    }
    // Not for an address of this host, nor where forwarding is off.
    result = bpf_fib_lookup(skb, &query, sizeof(query), 0);
    return (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ||
            result == BPF_FIB_LKUP_RET_FRAG_NEEDED) &&
           query.ifindex != skb->ifindex;
}

// The frame comes in and is for the address.
INLINE int enters(struct __sk_buff *skb, u8 family, const struct address *from, const struct address *to)
{
    u64 *slot = bpf_map_lookup_elem(&vips, to);
    struct counters *count;

    if (!slot)
        return TC_ACT_UNSPEC;
    count = bpf_map_lookup_elem(&counters, to);
    if (pass(*(volatile u64 *)slot, count) || carried(skb, family, from, to))
        return TC_ACT_UNSPEC;
    count_drop(count);
    return TC_ACT_SHOT;
}

// RFC 4861 section 4.4: the target is the address that is advertised, whatever the source is. The type is
// looked for right behind the IPv6 header; Linux sends no advertisement behind extension headers.
INLINE int advertised(const struct __sk_buff *skb, u32 ip, struct address *target)
{
    u8 next = 0, type = 0;

    if (bpf_skb_load_bytes(skb, ip + 6, &next, 1) || next != NEXT_HEADER_ICMPV6)
        return 0;
    if (bpf_skb_load_bytes(skb, ip + 40, &type, 1) || type != NEIGHBOR_ADVERTISEMENT)
        return 0;
    return load6(skb, ip + 48, target);
}

INLINE int is_tag(u16 ethertype)
{
    return ethertype == BE16(ETH_P_8021Q) || ethertype == BE16(ETH_P_8021AD);
}

// Steps over the Ethernet header. The type comes from the frame and not from skb->protocol: a packet socket
// writes what it likes there, and the neighbours read the frame. Tags in the frame are stepped over, two at
// most (802.1ad). Returns the type, 0 where there is none.
INLINE u16 ethernet(const struct __sk_buff *skb, u32 *at)
{
    u16 ethertype = 0;

    *at = ETHERTYPE_AT;
    if (bpf_skb_load_bytes(skb, *at, &ethertype, 2))
        return 0;
#pragma unroll
    for (int tags = 0; tags < 2; tags++) {
        if (!is_tag(ethertype))
            break;
        *at += TAG_LEN;
        if (bpf_skb_load_bytes(skb, *at, &ethertype, 2))
            return 0;
    }
    *at += 2;
    return ethertype;
}

SEC("classifier/egress") int vip_egress(struct __sk_buff *skb)
{
    struct address address;
    u32 at;

    switch (ethernet(skb, &at)) {
    case BE16(ETH_P_ARP):
        // RFC 826: requests carry the sender's mapping just as replies do.
        return load4(skb, at + 14, &address) ? leaves(skb, &address) : TC_ACT_UNSPEC;
    case BE16(ETH_P_IP):
        return load4(skb, at + 12, &address) ? leaves(skb, &address) : TC_ACT_UNSPEC;
    case BE16(ETH_P_IPV6):
        if (advertised(skb, at, &address) && leaves(skb, &address) == TC_ACT_SHOT)
            return TC_ACT_SHOT;
        return load6(skb, at + 8, &address) ? leaves(skb, &address) : TC_ACT_UNSPEC;
    default:
        return TC_ACT_UNSPEC;
    }
}

SEC("classifier/ingress") int vip_ingress(struct __sk_buff *skb)
{
    struct address from, to;
    u32 at;

    // A mark says what the frame was when it came in last: one from before (through a container and back) is
    // worth nothing.
    skb->tc_index = 0;
    switch (ethernet(skb, &at)) {
    case BE16(ETH_P_ARP):
        if (load4(skb, at + 14, &from))
            speaks(skb, &from);
        return TC_ACT_UNSPEC;
    case BE16(ETH_P_IP):
        if (!load4(skb, at + 12, &from) || !load4(skb, at + 16, &to))
            return TC_ACT_UNSPEC;
        speaks(skb, &from);
        return enters(skb, AF_INET, &from, &to);
    case BE16(ETH_P_IPV6):
        if (!load6(skb, at + 8, &from) || !load6(skb, at + 24, &to))
            return TC_ACT_UNSPEC;
        speaks(skb, &from);
        if (enters(skb, AF_INET6, &from, &to) == TC_ACT_SHOT)
            return TC_ACT_SHOT;
        if (advertised(skb, at, &to))
            speaks(skb, &to);
        return TC_ACT_UNSPEC;
    default:
        return TC_ACT_UNSPEC;
    }
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
