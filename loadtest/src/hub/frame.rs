//! WebSocket frames as a client sees them (RFC 6455): reads unmasked ones out of bytes that may be split anywhere, and
//! writes masked ones. Pure; what a message means is `message`'s.

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// A close frame without a code.
pub(crate) const NO_CODE: u16 = 1005;

/// Longer than anything that a hub sends to a client of ours.
const PAYLOAD_BYTES_MAX: u64 = 16 << 20;

/// Any key will do: it hides nothing on loopback, and unmasking costs the server the same.
const MASK: [u8; 4] = [0x9d, 0x37, 0x5b, 0xe2];

/// What one socket has received of a frame that is not complete; holds no memory in between.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    partial: Vec<u8>,
}

impl Frames {
    /// Takes bytes and hands on each frame that they complete: its opcode and payload. The error is a sentence about the
    /// server's mistake.
    pub(crate) fn take(&mut self, bytes: &[u8], each: &mut impl FnMut(u8, &[u8])) -> Result<(), &'static str> {
        if self.partial.is_empty() {
            let taken = whole_frames(bytes, each)?;
            self.partial.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        self.partial.extend_from_slice(bytes);
        let taken = whole_frames(&self.partial, each)?;
        if taken == self.partial.len() {
            self.partial = Vec::new();
        } else {
            self.partial.drain(..taken);
        }
        Ok(())
    }
}

/// Hands on the complete frames at the front of `bytes`; says how many bytes they are.
fn whole_frames(bytes: &[u8], each: &mut impl FnMut(u8, &[u8])) -> Result<usize, &'static str> {
    let mut at = 0;
    while let Some((opcode, begin, end)) = parse(&bytes[at..])? {
        each(opcode, &bytes[at + begin..at + end]);
        at += end;
    }
    Ok(at)
}

/// The frame at the front of `bytes`: its opcode, and where its payload begins and ends; none if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, &'static str> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("a frame with reserved bits");
    }
    if second & 0x80 != 0 {
        return Err("a masked frame from a server");
    }
    let opcode = first & 0x0f;
    let is_control = opcode >= CLOSE;
    if first & 0x80 == 0 || opcode == 0 {
        return Err("a message in fragments");
    }
    if !matches!(opcode, 1 | 2 | CLOSE..=PONG) {
        return Err("a frame of an unknown kind");
    }
    let (begin, length) = match second {
        126 | 127 if is_control => return Err("a control frame of more than 125 bytes"),
        126 => (4, rest.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
        127 => (10, rest.first_chunk().map(|length| u64::from_be_bytes(*length))),
        short => (2, Some(u64::from(short))),
    };
    let Some(length) = length else { return Ok(None) };
    if length > PAYLOAD_BYTES_MAX {
        return Err("a frame of more than 16 MiB");
    }
    let end = begin + usize::try_from(length).unwrap_or(usize::MAX);
    Ok((bytes.len() >= end).then_some((opcode, begin, end)))
}

/// Appends one masked frame.
pub(crate) fn put(output: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    output.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => output.push(0x80 | length),
        (_, Ok(length)) => {
            output.push(0x80 | 0x7e);
            output.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            output.push(0x80 | 0x7f);
            output.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    output.extend_from_slice(&MASK);
    output.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// The code of a close frame.
pub(crate) fn close_code(payload: &[u8]) -> u16 {
    payload.first_chunk().map_or(NO_CODE, |code| u16::from_be_bytes(*code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's frame.
    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ ..126 => frame.push(u8::try_from(short).expect("short")),
            long if long < 1 << 16 => {
                frame.push(126);
                frame.extend_from_slice(&u16::try_from(long).expect("two bytes").to_be_bytes());
            }
            longer => {
                frame.push(127);
                frame.extend_from_slice(&(longer as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn read(bytes: &[u8], split: usize) -> Result<Vec<(u8, Vec<u8>)>, &'static str> {
        let mut frames = Frames::default();
        let mut read = Vec::new();
        for piece in bytes.chunks(split) {
            frames.take(piece, &mut |opcode, payload| read.push((opcode, payload.to_vec())))?;
        }
        assert_eq!(frames.partial.capacity(), 0, "all of it was taken, and nothing is held");
        Ok(read)
    }

    #[test]
    fn frames_are_the_same_however_they_are_split() {
        let sent = [
            (TEXT, b"hello".to_vec()),
            (PING, Vec::new()),
            (TEXT, vec![b'x'; 125]),
            (TEXT, vec![b'y'; 126]),
            (2, vec![0; 300]),
            (CLOSE, vec![0x0f, 0xa0]),
        ];
        let bytes = sent.iter().flat_map(|(opcode, payload)| server_frame(*opcode, payload)).collect::<Vec<_>>();
        for split in 1..=bytes.len() {
            assert_eq!(read(&bytes, split).as_deref(), Ok(sent.as_slice()), "split {split}");
        }
        let long = server_frame(TEXT, &vec![b'z'; 70_000]);
        assert_eq!(read(&long, 9_999), Ok(vec![(TEXT, vec![b'z'; 70_000])]));
    }

    #[test]
    fn a_servers_mistakes_are_told() {
        for (bytes, mistake) in [
            (&[0x81, 0x81, 0, 0, 0, 0, 0][..], "a masked frame from a server"),
            (&[0xc1, 1, b'a'], "a frame with reserved bits"),
            (&[0x01, 1, b'a'], "a message in fragments"),
            (&[0x80, 1, b'a'], "a message in fragments"),
            (&[0x83, 0], "a frame of an unknown kind"),
            (&[0x8b, 0], "a frame of an unknown kind"),
            (&[0x89, 126, 0, 126], "a control frame of more than 125 bytes"),
            (&[0x81, 127, 0, 0, 0, 0, 1, 0, 0, 1], "a frame of more than 16 MiB"),
            (&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255], "a frame of more than 16 MiB"),
        ] {
            assert_eq!(read(bytes, bytes.len()), Err(mistake), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_sent_is_masked_and_as_short_as_it_can_be() {
        for (length, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let payload = vec![b'p'; length];
            let mut sent = Vec::new();
            put(&mut sent, TEXT, &payload);
            assert_eq!(sent.len(), head + 4 + length);
            assert_eq!(sent[1] & 0x80, 0x80, "masked");
            // As a server sees it: unmasked, the bit of the mask and the key taken out, it is a frame of the same length.
            let mut plain = [&sent[..head], &sent[head + 4..]].concat();
            plain[1] &= 0x7f;
            for (nth, byte) in plain[head..].iter_mut().enumerate() {
                *byte ^= sent[head + nth % 4];
            }
            assert_eq!(plain, server_frame(TEXT, &payload));
        }
    }

    #[test]
    fn a_close_frame_has_a_code_or_none() {
        assert_eq!(close_code(&[0x0f, 0xa0, b'x']), 4000);
        assert_eq!((close_code(&[]), close_code(&[3])), (NO_CODE, NO_CODE));
    }
}
