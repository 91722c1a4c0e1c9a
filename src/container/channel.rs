//! What the runner and init say to each other, over a socket pair. Each also notices by it when
//! the other has ended.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

/// From the runner to init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Send this signal to the command.
    Signal(u8),
    /// Continue the command, which has the terminal again.
    Foreground,
    /// Continue the command, without the terminal.
    Background,
}

/// From init to the runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The command was stopped.
    Stopped,
    /// The command ended with this code.
    Exited(u8),
    /// The command was ended by this signal.
    Killed(u8),
    /// There is no command: the root couldn't be made. Init has said why.
    Failed,
}

/// A message of two bytes.
pub(super) trait Message: Sized {
    fn encode(self) -> [u8; 2];
    fn decode(bytes: [u8; 2]) -> Option<Self>;
}

impl Message for Order {
    fn encode(self) -> [u8; 2] {
        match self {
            Order::Signal(number) => [b's', number],
            Order::Foreground => [b'f', 0],
            Order::Background => [b'b', 0],
        }
    }

    fn decode(bytes: [u8; 2]) -> Option<Self> {
        match bytes {
            [b's', number] => Some(Order::Signal(number)),
            [b'f', _] => Some(Order::Foreground),
            [b'b', _] => Some(Order::Background),
            _ => None,
        }
    }
}

impl Message for News {
    fn encode(self) -> [u8; 2] {
        match self {
            News::Stopped => [b't', 0],
            News::Exited(code) => [b'e', code],
            News::Killed(number) => [b'k', number],
            News::Failed => [b'x', 0],
        }
    }

    fn decode(bytes: [u8; 2]) -> Option<Self> {
        match bytes {
            [b't', _] => Some(News::Stopped),
            [b'e', code] => Some(News::Exited(code)),
            [b'k', number] => Some(News::Killed(number)),
            [b'x', _] => Some(News::Failed),
            _ => None,
        }
    }
}

/// Sends; a peer that has gone is noticed by [`receive`].
pub(super) fn send(to: &UnixStream, message: impl Message) {
    // Two bytes are sent together or not at all, and nobody is there to tell about a failure.
    let _ = rustix::net::send(to, &message.encode(), SendFlags::NOSIGNAL);
}

/// Waits for a message; `None` when the peer has gone.
pub(super) fn receive<M: Message>(mut from: &UnixStream) -> Option<M> {
    let mut bytes = [0; 2];
    loop {
        return match from.read_exact(&mut bytes) {
            Ok(()) => M::decode(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let (a, b) = UnixStream::pair().unwrap();
        for order in [Order::Signal(15), Order::Foreground, Order::Background] {
            send(&a, order);
            assert_eq!(receive::<Order>(&b), Some(order));
        }
        for news in [
            News::Stopped,
            News::Exited(3),
            News::Killed(9),
            News::Failed,
        ] {
            send(&b, news);
            assert_eq!(receive::<News>(&a), Some(news));
        }
        drop(a);
        assert_eq!(receive::<Order>(&b), None);
    }
}
