// Preloaded into a daemon, makes nf_tables answer it as a kernel before Linux 6.9 does: a table that both belongs to a
// socket and outlives it has a flag that such a kernel does not know. Here it is one that no kernel knows.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netlink.h>

// NFTA_TABLE_FLAGS with NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST, as an attribute.
static const unsigned char OWNED[] = {8, 0, 2, 0, 0, 0, 0, 6};
static const unsigned char UNKNOWN = 0x40;
// NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWTABLE.
static const unsigned short NEW_TABLE = 10 << 8;

ssize_t send(int socket, const void *message, size_t length, int flags) {
    ssize_t (*next)(int, const void *, size_t, int) = (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    int protocol = 0, domain = 0;
    socklen_t size = sizeof protocol;
    if (getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) || domain != AF_NETLINK ||
        getsockopt(socket, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) || protocol != NETLINK_NETFILTER) {
        return next(socket, message, length, flags);
    }
    unsigned char *copy = malloc(length);
    if (copy == NULL) {
        abort();
    }
    memcpy(copy, message, length);
    for (size_t at = 0; at + sizeof(struct nlmsghdr) <= length;) {
        struct nlmsghdr header;
        memcpy(&header, copy + at, sizeof header);
        if (header.nlmsg_len < sizeof header || at + header.nlmsg_len > length) {
            break;
        }
        unsigned char *found = memmem(copy + at, header.nlmsg_len, OWNED, sizeof OWNED);
        if (header.nlmsg_type == NEW_TABLE && found != NULL) {
            found[sizeof OWNED - 1] |= UNKNOWN;
        }
        at += NLMSG_ALIGN(header.nlmsg_len);
    }
    ssize_t sent = next(socket, copy, length, flags);
    free(copy);
    return sent;
}
