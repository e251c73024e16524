//! Blocking route netlink: batches of requests with one verdict each, and dumps.
//!
//! Blocking, because the kernel handles a request inside `sendto`: there is nothing to wait for. Batches, because
//! a takeover adds hundreds of addresses and one system call per address is most of the cost.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// Messages in one `sendto`. Each answer takes under 1 KiB of the receive buffer, whose default is 208 KiB.
const BATCH: usize = 200;

/// The kernel's largest dump answer is 32 KiB; acks are far smaller.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A dump is repeated while the table changes under it; this many times in a row is no accident.
const DUMP_ATTEMPTS: usize = 16;

/// A request for the kernel with its flags beyond `NLM_F_REQUEST | NLM_F_ACK`.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

/// Where the receive loop stands.
enum Flow {
    More,
    Done,
}

/// One netlink socket of the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Acks without the request in them: smaller answers, fewer lost.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends all requests and returns the kernel's verdict on each, in order. An outer error means that the
    /// verdicts are not known: the requests may have been carried out.
    pub(crate) fn execute(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> io::Result<Vec<Result<(), Errno>>> {
        let mut verdicts = Vec::new();
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            self.execute_batch(requests.by_ref().take(BATCH), &mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn execute_batch(
        &mut self,
        requests: impl Iterator<Item = Request>,
        verdicts: &mut Vec<Result<(), Errno>>,
    ) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(16 * 1024);
        let mut count = 0;
        for request in requests {
            self.append(&mut bytes, request.message, NLM_F_REQUEST | NLM_F_ACK | request.flags);
            count += 1;
        }
        self.socket.send(&bytes, 0)?;

        let mut answers = vec![None; count];
        let mut missing = count;
        while missing > 0 {
            self.receive(|message| {
                let offset = message.header.sequence_number.wrapping_sub(first) as usize;
                // Answers to a batch that was given up have other numbers.
                if let (NetlinkPayload::Error(error), Some(answer @ None)) = (message.payload, answers.get_mut(offset))
                {
                    *answer = Some(error.code.map_or(Ok(()), |code| Err(Errno::from_raw(code.get().saturating_neg()))));
                    missing -= 1;
                }
                Flow::More
            })?;
        }
        verdicts.extend(answers.into_iter().flatten());
        Ok(())
    }

    /// One request, one verdict.
    pub(crate) fn execute_one(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        let verdicts = self.execute([Request { message, flags }]).map_err(|error| errno(&error))?;
        verdicts.into_iter().next().unwrap_or(Err(Errno::EPROTO))
    }

    /// One object by its key: the answer to a request without `NLM_F_DUMP`.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_REQUEST);
        self.socket.send(&bytes, 0)?;
        let mut found = None;
        while found.is_none() {
            self.receive(|message| {
                if message.header.sequence_number != sequence {
                    return Flow::More;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => found = Some(Ok(answer)),
                    NetlinkPayload::Error(error) => found = Some(Err(error.to_io())),
                    _ => return Flow::More,
                }
                Flow::Done
            })?;
        }
        found.unwrap_or_else(|| Err(Errno::EPROTO.into()))
    }

    /// All objects that the dump request asks for, as one consistent view.
    pub(crate) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(message.clone())? {
                return Ok(objects);
            }
        }
        Err(io::Error::other("the kernel's table changed under every attempt to read it"))
    }

    /// `None` where the table changed meanwhile and the answer may have holes.
    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;

        let mut objects = Vec::new();
        let mut consistent = true;
        let mut end = None;
        while end.is_none() {
            self.receive(|message| {
                if message.header.sequence_number != sequence {
                    return Flow::More;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) if error.code.is_some() => end = Some(Err(error.to_io())),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        end = Some(Err(io::Error::from_raw_os_error(done.code.saturating_neg())));
                    }
                    NetlinkPayload::Done(_) => end = Some(Ok(())),
                    _ => return Flow::More,
                }
                if end.is_some() { Flow::Done } else { Flow::More }
            })?;
        }
        end.unwrap_or(Ok(())).map(|()| consistent.then_some(objects))
    }

    /// Appends the message with the next sequence number, which it returns.
    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.sequence
    }

    /// Waits for one datagram and hands over its messages.
    fn receive(&mut self, mut handle: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> Flow) -> io::Result<()> {
        self.received.clear();
        loop {
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut rest = self.received.as_slice();
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let length = header.length() as usize;
            match NetlinkMessage::deserialize(&rest[..length.min(rest.len())]) {
                Ok(message) => {
                    if let Flow::Done = handle(message) {
                        return Ok(());
                    }
                }
                // An object of a kind that the decoder does not know is not ours; the dump goes on without it.
                Err(error) => tracing::debug!(%error, kind = header.message_type(), "netlink message not understood"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The error number of an I/O error, `EIO` where it has none.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
