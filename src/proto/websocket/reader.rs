//! Bytes into messages, strictly (RFC 6455 §5), in whatever pieces they come.
//!
//! A message that is one frame and lies in the lent buffer is unmasked there and lent on. Only what is not whole yet is
//! kept, in memory that grows with what came and never with what a peer declares. Between frames nothing is kept.
#![expect(
    clippy::mut_mut,
    reason = "who reads has a slice that grows shorter, and its bytes are unmasked where they lie"
)]

use super::frame::{CONTROL_BYTES_MAX, FIN, FrameError, HEADER_MAX, MASK, Opcode, RSV1};
use super::mask::{key_after, unmask};

/// What a reader takes. Both may change from one frame to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message; of a compressed one, these are the bytes that it becomes, which whoever inflates it counts.
    pub message_bytes_max: u32,
    /// Frames that one message may come in.
    pub fragments_max: u32,
}

/// Something whole that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
    /// A message that is compressed still.
    Deflated {
        /// Whether it must become UTF-8.
        is_text: bool,
        /// As it came.
        payload: &'a [u8],
    },
    /// To be answered with a pong of the same payload (RFC 6455 §5.5.2).
    Ping(&'a [u8]),
    /// A sign of life.
    Pong(&'a [u8]),
    /// The peer says nothing more.
    Close {
        /// Why.
        code: Option<u16>,
        /// In words.
        reason: &'a str,
    },
}

/// Reads one direction of a connection.
#[derive(Debug)]
pub struct Reader {
    under_way: Option<Box<UnderWay>>,
    limits: Limits,
    is_masked: bool,
    may_be_deflated: bool,
    mode: Mode,
}

/// What becomes of what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It is read.
    Reads,
    /// Frames are read; of data, nothing is kept.
    Skips,
    /// Nothing is read any more.
    Over,
}

/// What has come in part.
#[derive(Debug, Default)]
struct UnderWay {
    /// Bytes of the next frame's header.
    header: [u8; HEADER_MAX],
    header_bytes: u8,
    /// The frame whose payload has not all come.
    frame: Option<Frame>,
    /// The message whose last fragment has not all come.
    message: Option<Message>,
    /// The payload of a control frame; it may come between the fragments of a message.
    control: Vec<u8>,
    lent: Lent,
}

/// What the last event was made of, and goes with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lent {
    #[default]
    Nothing,
    Message,
    Control,
}

/// A frame whose header has been read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    is_final: bool,
    is_deflated: bool,
    /// The key for the next byte.
    key: [u8; 4],
    /// Bytes of the payload still to come.
    left: usize,
}

#[derive(Debug)]
struct Message {
    is_text: bool,
    is_deflated: bool,
    fragments: u32,
    bytes: Vec<u8>,
    /// So many bytes are whole UTF-8.
    checked: usize,
}

/// Something whole, and where it lies.
#[derive(Clone, Copy)]
enum Found<'b> {
    /// All of it in the lent buffer.
    InPlace(Frame, &'b [u8]),
    /// In what is under way.
    Kept(Frame),
}

impl Reader {
    /// Reads what a client sends; its messages may be compressed where that was agreed.
    pub const fn of_client(limits: Limits, may_be_deflated: bool) -> Self {
        Self { under_way: None, limits, is_masked: true, may_be_deflated, mode: Mode::Reads }
    }

    /// Reads what a server sends.
    pub const fn of_server(limits: Limits, may_be_deflated: bool) -> Self {
        Self { under_way: None, limits, is_masked: false, may_be_deflated, mode: Mode::Reads }
    }

    /// Sets the limits from the next frame on.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes of memory that payloads are kept in.
    pub(super) fn kept_bytes(&self) -> usize {
        let Some(under_way) = &self.under_way else { return 0 };
        let message = under_way.message.as_ref().map_or(0, |message| message.bytes.capacity());
        message.saturating_add(under_way.control.capacity())
    }

    /// Bytes of memory that what has come in part takes.
    pub fn held_bytes(&self) -> usize {
        if self.is_at_rest() { 0 } else { size_of::<UnderWay>().saturating_add(self.kept_bytes()) }
    }

    /// From now on only control frames matter: of messages nothing is kept, and those that come in pieces are not what they
    /// were. What is held is given back.
    pub fn skip_messages(&mut self) {
        if self.mode == Mode::Reads {
            self.mode = Mode::Skips;
            if let Some(message) = self.under_way.as_mut().and_then(|under_way| under_way.message.as_mut()) {
                (message.bytes, message.checked) = (Vec::new(), 0);
            }
        }
    }

    /// Whether nothing has come in part.
    pub const fn is_at_rest(&self) -> bool {
        self.under_way.is_none()
    }

    /// Takes bytes up to the end of the next thing that is whole. `None` says that all bytes are taken; then nothing lent
    /// is held any longer.
    ///
    /// A close or a mistake is the last that is read: what follows is taken and means nothing (RFC 6455 §5.5.1).
    ///
    /// ```
    /// # use shardgate::proto::websocket::{Event, Limits, Opcode, Reader, client_frame};
    /// # let mut buffer = client_frame(Opcode::Text, true, b"hello", [1, 2, 3, 4]);
    /// let limits = Limits { message_bytes_max: 65_536, fragments_max: 64 };
    /// let mut reader = Reader::of_client(limits, false);
    /// let mut bytes = &mut buffer[..]; // what was read
    /// while let Some(event) = reader.next(&mut bytes)? {
    ///     assert_eq!(event, Event::Text("hello"));
    /// }
    /// # Ok::<(), shardgate::proto::websocket::FrameError>(())
    /// ```
    pub fn next<'a, 'b: 'a>(&'a mut self, bytes: &mut &'b mut [u8]) -> Result<Option<Event<'a>>, FrameError> {
        self.release();
        let found = loop {
            if self.mode == Mode::Over {
                self.under_way = None;
                *bytes = &mut [];
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            match self.advance(bytes) {
                Ok(None) => {}
                Ok(Some(found)) => break found,
                Err(error) => return Err(self.end(error)),
            }
        };
        self.event(found).map(Some)
    }

    fn end(&mut self, error: FrameError) -> FrameError {
        self.mode = Mode::Over;
        self.under_way = None;
        error
    }

    /// Gives back what the last event was made of.
    fn release(&mut self) {
        let Some(under_way) = &mut self.under_way else { return };
        match std::mem::take(&mut under_way.lent) {
            Lent::Nothing => {}
            Lent::Message => under_way.message = None,
            Lent::Control => under_way.control = Vec::new(),
        }
        if under_way.frame.is_none() && under_way.message.is_none() && under_way.header_bytes == 0 {
            self.under_way = None;
        }
    }

    /// Takes one header, or as much of a payload as is there.
    fn advance<'b>(&mut self, bytes: &mut &'b mut [u8]) -> Result<Option<Found<'b>>, FrameError> {
        let mut frame = match self.under_way.as_mut().and_then(|under_way| under_way.frame.take()) {
            Some(frame) => frame,
            None => match self.read_header(bytes)? {
                Some(frame) => self.admit(frame)?,
                None => return Ok(None),
            },
        };
        let payload = take(bytes, frame.left);
        unmask(payload, frame.key);
        frame.key = key_after(frame.key, payload.len());
        frame.left = frame.left.saturating_sub(payload.len());
        if frame.left == 0 && self.is_nothing_kept_of(&frame) {
            return Ok(Some(Found::InPlace(frame, payload)));
        }
        self.keep(&frame, payload)
    }

    /// Whether a frame that has come to its end is whole in the lent buffer.
    fn is_nothing_kept_of(&self, frame: &Frame) -> bool {
        let Some(under_way) = &self.under_way else { return frame.opcode.is_control() || frame.is_final };
        if frame.opcode.is_control() {
            under_way.control.is_empty()
        } else {
            frame.is_final && under_way.message.is_none()
        }
    }

    fn keep<'b>(&mut self, frame: &Frame, payload: &[u8]) -> Result<Option<Found<'b>>, FrameError> {
        let bytes_max = self.bytes_max(frame.is_deflated);
        let under_way = self.under_way.get_or_insert_default();
        let is_whole = frame.left == 0 && frame.is_final;
        if frame.opcode.is_control() {
            under_way.control.extend_from_slice(payload);
        } else {
            let message = under_way.message.get_or_insert_with(|| Message::begin(frame));
            if self.mode == Mode::Reads {
                message.append(payload, bytes_max);
                message.check_text(is_whole)?;
            }
        }
        if frame.left > 0 {
            under_way.frame = Some(*frame);
        }
        Ok(is_whole.then_some(Found::Kept(*frame)))
    }

    /// Reads the header of the next frame, once all of it is there.
    fn read_header(&mut self, bytes: &mut &mut [u8]) -> Result<Option<Frame>, FrameError> {
        if self.under_way.as_ref().is_none_or(|under_way| under_way.header_bytes == 0)
            && let Some((frame, header_bytes)) = self.parse_header(bytes)?
        {
            take(bytes, header_bytes);
            return Ok(Some(frame));
        }
        // Byte by byte, as it is rare that a read ends within a header.
        while let [byte] = *take(bytes, 1) {
            let under_way = self.under_way.get_or_insert_default();
            if let Some(place) = under_way.header.get_mut(usize::from(under_way.header_bytes)) {
                *place = byte;
            }
            under_way.header_bytes = under_way.header_bytes.saturating_add(1);
            let (header, header_bytes) = (under_way.header, usize::from(under_way.header_bytes));
            if let Some((frame, _)) = self.parse_header(header.get(..header_bytes).unwrap_or_default())? {
                if let Some(under_way) = &mut self.under_way {
                    under_way.header_bytes = 0;
                }
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Parses a header that these bytes begin with, and refuses it as soon as it is seen to be wrong; says how long it is.
    fn parse_header(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let opcode = Opcode::of(first).ok_or(FrameError::ReservedOpcode(first & 0x0f))?;
        let (is_final, is_deflated) = (first & FIN != 0, first & RSV1 != 0);
        // RFC 7692 §6: only the first frame of a data message says whether it is compressed.
        let may_be_deflated = self.may_be_deflated && matches!(opcode, Opcode::Text | Opcode::Binary);
        if first & 0x30 != 0 || (is_deflated && !may_be_deflated) {
            return Err(FrameError::ReservedBit);
        }
        if opcode.is_control() && !is_final {
            return Err(FrameError::ControlFragmented);
        }
        let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
        match (second & MASK != 0, self.is_masked) {
            (false, true) => return Err(FrameError::Unmasked),
            (true, false) => return Err(FrameError::Masked),
            _ => {}
        }
        let (length, rest, length_bytes) = match second & 0x7f {
            126.. if opcode.is_control() => return Err(FrameError::ControlTooLong),
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), rest, 2_usize)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*length), rest, 8)
            }
            short => (u64::from(short), rest, 0),
        };
        if length >= 1 << 63 {
            return Err(FrameError::LengthPastRange);
        }
        if (length_bytes == 2 && length <= CONTROL_BYTES_MAX as u64) || (length_bytes == 8 && length <= 0xffff) {
            return Err(FrameError::LengthNotMinimal);
        }
        let key = if self.is_masked {
            let Some(key) = rest.first_chunk() else { return Ok(None) };
            *key
        } else {
            [0; 4]
        };
        // Longer than the address space is longer than any limit.
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        let header_bytes = length_bytes.saturating_add(if self.is_masked { 6 } else { 2 });
        Ok(Some((Frame { opcode, is_final, is_deflated, key, left }, header_bytes)))
    }

    /// Lets a frame in, if it may follow those before, and is not too much with them.
    fn admit(&mut self, mut frame: Frame) -> Result<Frame, FrameError> {
        if frame.opcode.is_control() {
            return Ok(frame);
        }
        let Limits { message_bytes_max, fragments_max } = self.limits;
        let message = self.under_way.as_mut().and_then(|under_way| under_way.message.as_mut());
        let held = match (frame.opcode, message) {
            (Opcode::Continuation, None) => return Err(FrameError::NothingToContinue),
            (Opcode::Continuation, Some(message)) => {
                message.fragments = message.fragments.saturating_add(1);
                if message.fragments > fragments_max {
                    return Err(FrameError::TooManyFragments(fragments_max));
                }
                frame.is_deflated = message.is_deflated;
                message.bytes.len()
            }
            (_, Some(_)) => return Err(FrameError::MessageWithinMessage),
            (_, None) => 0,
        };
        if held.saturating_add(frame.left) > self.bytes_max(frame.is_deflated) {
            return Err(FrameError::MessageTooLong(message_bytes_max));
        }
        Ok(frame)
    }

    /// Bytes that a message may have as it comes. What does not compress grows by five bytes for each block that it is
    /// stored in; some senders make small blocks.
    fn bytes_max(&self, is_deflated: bool) -> usize {
        let bytes_max = self.limits.message_bytes_max as usize;
        if is_deflated { bytes_max.saturating_add(bytes_max >> 4).saturating_add(64) } else { bytes_max }
    }

    /// Makes an event of what is whole.
    fn event<'a, 'b: 'a>(&'a mut self, found: Found<'b>) -> Result<Event<'a>, FrameError> {
        let (frame, payload, is_text) = match found {
            Found::InPlace(frame, payload) => (frame, payload, frame.opcode == Opcode::Text),
            Found::Kept(frame) => {
                let Some(under_way) = &mut self.under_way else { return Ok(Event::Pong(&[])) }; // it was put there just now
                if frame.opcode.is_control() {
                    under_way.lent = Lent::Control;
                    (frame, &*under_way.control, false)
                } else {
                    under_way.lent = Lent::Message;
                    let message = under_way.message.as_ref();
                    (frame, message.map_or(&[][..], |it| &it.bytes), message.is_some_and(|it| it.is_text))
                }
            }
        };
        let event = match frame.opcode {
            Opcode::Ping => Ok(Event::Ping(payload)),
            Opcode::Pong => Ok(Event::Pong(payload)),
            Opcode::Close => close(payload),
            _ if frame.is_deflated => Ok(Event::Deflated { is_text, payload }),
            _ if is_text => str::from_utf8(payload).map(Event::Text).map_err(|_| FrameError::NotUtf8),
            _ => Ok(Event::Binary(payload)),
        };
        if matches!(event, Err(_) | Ok(Event::Close { .. })) {
            self.mode = Mode::Over;
        }
        event
    }
}

impl Message {
    fn begin(frame: &Frame) -> Self {
        let is_text = frame.opcode == Opcode::Text;
        Self { is_text, is_deflated: frame.is_deflated, fragments: 1, bytes: Vec::new(), checked: 0 }
    }

    /// Memory doubles, and never past what a message may have.
    fn append(&mut self, payload: &[u8], bytes_max: usize) {
        let needed = self.bytes.len().saturating_add(payload.len());
        if needed > self.bytes.capacity() {
            let wanted = self.bytes.capacity().saturating_mul(2).min(bytes_max).max(needed);
            self.bytes.reserve_exact(wanted.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(payload);
    }

    /// Checks what has come of a text. A letter may be cut only where more is to come.
    fn check_text(&mut self, is_whole: bool) -> Result<(), FrameError> {
        if !self.is_text || self.is_deflated {
            return Ok(());
        }
        match str::from_utf8(self.bytes.get(self.checked..).unwrap_or_default()) {
            Ok(_) => self.checked = self.bytes.len(),
            Err(error) if error.error_len().is_none() && !is_whole => {
                self.checked = self.checked.saturating_add(error.valid_up_to());
            }
            Err(_) => return Err(FrameError::NotUtf8),
        }
        Ok(())
    }
}

/// Takes up to so many bytes from the front.
fn take<'b>(bytes: &mut &'b mut [u8], count: usize) -> &'b mut [u8] {
    let count = count.min(bytes.len());
    let (front, rest) = std::mem::take(bytes).split_at_mut(count);
    *bytes = rest;
    front
}

/// Reads what a close carries (RFC 6455 §5.5.1).
fn close(payload: &[u8]) -> Result<Event<'_>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        let nothing = Event::Close { code: None, reason: "" };
        return if payload.is_empty() { Ok(nothing) } else { Err(FrameError::CloseOfOneByte) };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455 §7.4, and the codes registered since. 1004 means nothing yet; 1005, 1006 and 1015 are never sent.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::CloseCode(code));
    }
    let reason = str::from_utf8(reason).map_err(|_| FrameError::NotUtf8)?;
    Ok(Event::Close { code: Some(code), reason })
}
