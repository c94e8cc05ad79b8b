//! What frames are made of, and what can be wrong with them.

/// Bytes of the longest header: two, eight of length, four of mask.
pub(super) const HEADER_MAX: usize = 14;

/// Bytes that a control frame may carry (RFC 6455 §5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// The last fragment of a message, or all of it.
pub(super) const FIN: u8 = 0x80;

/// The message is compressed (RFC 7692 §6).
pub(super) const RSV1: u8 = 0x40;

/// The payload is masked.
pub(super) const MASK: u8 = 0x80;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the frame of that name")]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    /// The opcode in the first byte of a frame.
    pub(super) const fn of(first: u8) -> Option<Self> {
        Some(match first & 0x0f {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// What a peer did wrong in its frames. The connection ends with [`Self::close_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages tell")]
pub enum FrameError {
    #[error("a client's frame is not masked")]
    Unmasked,
    #[error("a server's frame is masked")]
    Masked,
    #[error("a reserved bit is set that nothing agreed gives a meaning")]
    ReservedBit,
    #[error("opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    #[error("a control frame is fragmented")]
    ControlFragmented,
    #[error("a control frame has more than 125 bytes")]
    ControlTooLong,
    #[error("a length takes more bytes than it needs")]
    LengthNotMinimal,
    #[error("a length has its highest bit set")]
    LengthPastRange,
    #[error("a continuation continues nothing")]
    NothingToContinue,
    #[error("a message begins within another one")]
    MessageWithinMessage,
    #[error("a message is longer than {0} bytes")]
    MessageTooLong(u32),
    #[error("a message has more than {0} fragments")]
    TooManyFragments(u32),
    #[error("text is not UTF-8")]
    NotUtf8,
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    #[error("a close has one byte, which is no code")]
    CloseOfOneByte,
    #[error("a message is compressed in a way that cannot be read")]
    NotDeflated,
}

impl FrameError {
    /// The code that tells the peer (RFC 6455 §7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::NotUtf8 | Self::NotDeflated => 1007,
            Self::MessageTooLong(_) | Self::TooManyFragments(_) => 1009,
            _ => 1002,
        }
    }
}
