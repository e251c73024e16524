//! The nf_tables dialect of netlink: attributes, and transactions that happen as a whole or not at all.
//!
//! An encoder of our own: the renewal of a lease must not wait for an `nft` process, and what the rules are made of
//! is a handful of attributes. Numbers are those of linux/netfilter/nfnetlink.h and nf_tables.h.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;

/// `NFNL_SUBSYS_NFTABLES`: the upper byte of every message type, and what a transaction is for.
const SUBSYSTEM: u8 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Rules go to the end of their chain.
pub(super) const NLM_F_APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `NFPROTO_NETDEV`.
const FAMILY: u8 = 5;

/// A netlink header and a netfilter header.
const HEADERS: usize = 16 + 4;

/// The kernel's largest answer to a dump is 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A dump is repeated while the table changes under it; this many times in a row is no accident.
const DUMP_ATTEMPTS: usize = 16;

/// `nf_tables_msg_types`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    DelSet = 11,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
}

/// Attributes one after the other, each with its length and type.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Whoever makes long lists cuts them before: see `ELEMENTS` of the sets.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// Reads attributes; ends at the first that is cut off.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// The first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The text of an attribute, without its closing zero.
pub(super) fn text(bytes: &[u8], kind: u16) -> Option<&str> {
    let value = attribute(bytes, kind)?;
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// One step of a transaction.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) attributes: Attributes,
}

/// A transaction that was refused; nothing of it has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The step that the kernel did not like, where it was one.
    pub(super) step: Option<usize>,
    pub(super) errno: Errno,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { step: None, errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) }
    }
}

/// One socket of the network namespace that it was opened in. A table that has an owner belongs to it.
#[derive(Debug)]
pub(super) struct Nft {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
    sent: Vec<u8>,
}

impl Nft {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Acks without the request in them.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_BUFFER), sent: Vec::new() })
    }

    /// Carries out all steps at once, or none.
    pub(super) fn execute(&mut self, steps: &[Step]) -> Result<(), Refused> {
        let Some(last) = steps.len().checked_sub(1) else { return Ok(()) };
        self.sent.clear();
        let begin = self.append(BATCH_BEGIN, NLM_F_REQUEST, 0, u16::from(SUBSYSTEM), &Attributes::new());
        for (at, step) in steps.iter().enumerate() {
            // The answer to the last step comes after those to all others, whatever became of them.
            let ack = if at == last { NLM_F_ACK } else { 0 };
            self.append(type_of(step.kind), NLM_F_REQUEST | ack | step.flags, FAMILY, 0, &step.attributes);
        }
        self.append(BATCH_END, NLM_F_REQUEST, 0, u16::from(SUBSYSTEM), &Attributes::new());
        self.socket.send(&self.sent, 0)?;

        let mut result = Ok(());
        let mut done = false;
        while !done {
            self.receive(|kind, _, sequence, payload| {
                if kind != NLMSG_ERROR {
                    return;
                }
                let number = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                let from_begin = sequence.wrapping_sub(begin) as usize;
                // Answers to a transaction that was given up have other numbers.
                if from_begin > last + 1 {
                    return;
                }
                let step = from_begin.checked_sub(1);
                if number != 0 && result.is_ok() {
                    result = Err(Refused { step, errno: Errno::from_raw(number.saturating_neg()) });
                }
                // An error that is about no step is about the whole.
                done |= step == Some(last) || (step.is_none() && number != 0);
            })?;
        }
        result
    }

    /// What there is of a kind, as one consistent view: the attributes of each object.
    pub(super) fn dump(&mut self, kind: Kind, filter: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(kind, filter)? {
                return Ok(objects);
            }
        }
        Err(io::Error::other("the kernel's tables changed under every attempt to read them"))
    }

    fn dump_once(&mut self, kind: Kind, filter: &Attributes) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.sent.clear();
        let asked = self.append(type_of(kind), NLM_F_REQUEST | NLM_F_DUMP, FAMILY, 0, filter);
        self.socket.send(&self.sent, 0)?;
        let mut objects = Vec::new();
        let mut consistent = true;
        let mut end = None;
        while end.is_none() {
            self.receive(|kind, flags, sequence, payload| {
                if sequence != asked {
                    return;
                }
                consistent &= flags & NLM_F_DUMP_INTR == 0;
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        end = Some(payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)));
                    }
                    _ => objects.extend(payload.get(4..).map(<[u8]>::to_vec)),
                }
            })?;
        }
        match end.unwrap_or(0) {
            0 => Ok(consistent.then_some(objects)),
            // What was listed went away under the listing.
            error if error.saturating_neg() == Errno::EINTR as i32 => Ok(None),
            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        }
    }

    /// Returns the message's number.
    fn append(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &Attributes) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADERS + attributes.0.len()).unwrap_or(u32::MAX);
        self.sent.extend(length.to_ne_bytes());
        self.sent.extend(kind.to_ne_bytes());
        self.sent.extend(flags.to_ne_bytes());
        self.sent.extend(self.sequence.to_ne_bytes());
        // The port: the kernel.
        self.sent.extend([0; 4]);
        self.sent.extend([family, 0]);
        self.sent.extend(resource.to_be_bytes());
        self.sent.extend(&attributes.0);
        self.sequence
    }

    /// Takes one datagram and hands over its messages: type, flags, number, payload.
    fn receive(&mut self, mut handle: impl FnMut(u16, u16, u32, &[u8])) -> io::Result<()> {
        self.received.clear();
        // The kernel answers inside the call that asks: what is not there now will never come.
        self.socket.recv(&mut self.received, MSG_DONTWAIT)?;
        messages(&self.received, &mut handle);
        Ok(())
    }
}

/// Cuts a datagram into messages: type, flags, number, payload.
pub(super) fn messages(mut rest: &[u8], mut handle: impl FnMut(u16, u16, u32, &[u8])) {
    let half = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|field| u16::from_ne_bytes(*field));
    let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|field| u32::from_ne_bytes(*field));
    let read = |bytes: &[u8]| Some((word(bytes, 0)?, half(bytes, 4)?, half(bytes, 6)?, word(bytes, 8)?));
    while let Some((length, kind, flags, sequence)) = read(rest) {
        let length = length as usize;
        let Some(payload) = rest.get(16..length) else { return };
        handle(kind, flags, sequence, payload);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

pub(super) const fn type_of(kind: Kind) -> u16 {
    (SUBSYSTEM as u16) << 8 | kind as u16
}
