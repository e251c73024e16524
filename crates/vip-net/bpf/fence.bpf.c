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
struct __sk_buff;
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_skb_load_bytes)(const struct __sk_buff *skb, u32 offset, void *to, u32 len) = (void *)26;
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
    u64 passed;       // frames let through while the lease ran
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

INLINE int verdict(const struct address *address)
{
    u64 *slot = bpf_map_lookup_elem(&vips, address);
    struct counters *count;
    u64 now;

    if (!slot)
        return TC_ACT_UNSPEC;
    count = bpf_map_lookup_elem(&counters, address);
    now = bpf_ktime_get_boot_ns();
    if (!running(*(volatile u64 *)slot, now)) {
        if (count)
            __sync_fetch_and_add(&count->dropped, 1);
        return TC_ACT_SHOT;
    }
    if (count) {
        __sync_fetch_and_add(&count->passed, 1);
        *(volatile u64 *)&count->last_pass_ns = now;
    }
    // Not TC_ACT_OK: filters of others behind this one still have their say.
    return TC_ACT_UNSPEC;
}

INLINE int verdict4(const struct __sk_buff *skb, u32 at)
{
    struct address address = {{0, 0, BE32(0xffff), 0}};

    // A frame too short to carry the address cannot speak for it.
    if (bpf_skb_load_bytes(skb, at, &address.word[3], 4))
        return TC_ACT_UNSPEC;
    return verdict(&address);
}

INLINE int verdict6(const struct __sk_buff *skb, u32 at)
{
    struct address address;

    if (bpf_skb_load_bytes(skb, at, &address, 16))
        return TC_ACT_UNSPEC;
    return verdict(&address);
}

// RFC 4861 section 4.4: the target is the address that is advertised, whatever the source is. The type is
// looked for right behind the IPv6 header; Linux sends no advertisement behind extension headers.
INLINE int advertised(const struct __sk_buff *skb, u32 ip)
{
    u8 next = 0, type = 0;

    if (bpf_skb_load_bytes(skb, ip + 6, &next, 1) || next != NEXT_HEADER_ICMPV6)
        return TC_ACT_UNSPEC;
    if (bpf_skb_load_bytes(skb, ip + 40, &type, 1) || type != NEIGHBOR_ADVERTISEMENT)
        return TC_ACT_UNSPEC;
    return verdict6(skb, ip + 48);
}

INLINE int is_tag(u16 ethertype)
{
    return ethertype == BE16(ETH_P_8021Q) || ethertype == BE16(ETH_P_8021AD);
}

INLINE int fence(const struct __sk_buff *skb, int egress)
{
    u32 at = ETHERTYPE_AT;
    u16 ethertype = 0;

    // The type comes from the frame and not from skb->protocol: a packet socket writes what it likes there,
    // and the neighbours read the frame. Tags in the frame are stepped over, two at most (802.1ad).
    if (bpf_skb_load_bytes(skb, at, &ethertype, 2))
        return TC_ACT_UNSPEC;
#pragma unroll
    for (int tags = 0; tags < 2; tags++) {
        if (!is_tag(ethertype))
            break;
        at += TAG_LEN;
        if (bpf_skb_load_bytes(skb, at, &ethertype, 2))
            return TC_ACT_UNSPEC;
    }
    at += 2;

    switch (ethertype) {
    case BE16(ETH_P_ARP):
        // RFC 826: requests carry the sender's mapping just as replies do.
        return egress ? verdict4(skb, at + 14) : TC_ACT_UNSPEC;
    case BE16(ETH_P_IP):
        return verdict4(skb, at + (egress ? 12 : 16));
    case BE16(ETH_P_IPV6):
        if (egress && advertised(skb, at) == TC_ACT_SHOT)
            return TC_ACT_SHOT;
        return verdict6(skb, at + (egress ? 8 : 24));
    default:
        return TC_ACT_UNSPEC;
    }
}

SEC("classifier/egress") int vip_egress(struct __sk_buff *skb)
{
    return fence(skb, 1);
}

SEC("classifier/ingress") int vip_ingress(struct __sk_buff *skb)
{
    return fence(skb, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
