//! Names for a request: the id that every answer carries and the W3C trace context that goes upstream.
//!
//! Random numbers come from the caller's generator, so a seed replays them; neither kind of id is a secret.

use fastrand::Rng;

/// Shortest request id that is accepted from outside (docs/access-log.md).
pub const REQUEST_ID_MIN: usize = 8;
/// Longest request id that is accepted from outside (docs/access-log.md).
pub const REQUEST_ID_MAX: usize = 64;
/// Length of a request id of our own: 128 random bits.
const GENERATED: u8 = 26;
/// Crockford's base 32: no letter that could be taken for a digit.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A request's id: `[A-Za-z0-9._-]{8,64}`, held inline.
#[derive(Clone, Copy)]
pub struct RequestId {
    length: u8,
    bytes: [u8; REQUEST_ID_MAX],
}

impl RequestId {
    /// The id that came from outside, if it is one that we pass on.
    #[inline]
    pub fn accept(incoming: &[u8]) -> Option<Self> {
        let length = u8::try_from(incoming.len()).ok()?;
        if incoming.len() < REQUEST_ID_MIN || !incoming.iter().all(|&byte| is_id_byte(byte)) {
            return None;
        }
        let mut bytes = [0; REQUEST_ID_MAX];
        bytes.get_mut(..incoming.len())?.copy_from_slice(incoming);
        Some(Self { length, bytes })
    }

    /// A new id of 26 characters.
    #[inline]
    pub fn generate(rng: &mut Rng) -> Self {
        let mut bytes = [0; REQUEST_ID_MAX];
        for half in bytes[..usize::from(GENERATED)].chunks_exact_mut(usize::from(GENERATED / 2)) {
            let mut random = rng.u64(..);
            for byte in half {
                *byte = BASE32[(random % 32) as usize];
                random /= 32;
            }
        }
        Self { length: GENERATED, bytes }
    }

    /// The id as bytes for a head or a log line.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for RequestId {}

impl std::fmt::Debug for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[inline]
const fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Length of a version 00 `traceparent`.
pub const TRACEPARENT_LENGTH: usize = 55;
/// The one flag that version 00 defines.
const SAMPLED: u8 = 1;

/// Where a request stands in a distributed trace (W3C Trace Context, level 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Names the whole trace; never all zero.
    pub trace_id: [u8; 16],
    /// Names the span that the receiver's spans are children of; never all zero.
    pub parent: [u8; 8],
    /// Whether whoever began the trace asked for it to be recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent` field's value; `None` means that a new trace begins.
    pub fn parse_traceparent(value: &[u8]) -> Option<Self> {
        let (fixed, rest) = value.split_first_chunk::<TRACEPARENT_LENGTH>()?;
        let [version] = hex_bytes::<1>(&fixed[0..2])?;
        // §3.2.2.1: ff is no version. §4.3: a later version may say more behind another dash, ours may not.
        let rest_allowed = rest.is_empty() || (version > 0 && rest[0] == b'-');
        let dashes = [2, 35, 52].iter().all(|&at| fixed[at] == b'-');
        if version == 0xff || !rest_allowed || !dashes {
            return None;
        }
        let trace_id = hex_bytes::<16>(&fixed[3..35])?;
        let parent = hex_bytes::<8>(&fixed[36..52])?;
        let [flags] = hex_bytes::<1>(&fixed[53..55])?;
        if trace_id == [0; 16] || parent == [0; 8] {
            return None;
        }
        Some(Self { trace_id, parent, sampled: flags & SAMPLED != 0 })
    }

    /// A new trace, not sampled: that is for a [`Sampler`] to say.
    #[inline]
    pub fn begin(rng: &mut Rng) -> Self {
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&span_id(rng));
        trace_id[8..].copy_from_slice(&span_id(rng));
        Self { trace_id, parent: span_id(rng), sampled: false }
    }

    /// The same trace seen from one hop further.
    #[inline]
    #[must_use]
    pub fn child(&self, rng: &mut Rng) -> Self {
        Self { parent: span_id(rng), ..*self }
    }

    /// Writes the `traceparent` field's value.
    #[inline]
    pub fn write(&self, out: &mut [u8; TRACEPARENT_LENGTH]) {
        *out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace_id, &mut out[3..35]);
        write_hex(&self.parent, &mut out[36..52]);
        out[54] = b'0' + u8::from(self.sampled);
    }
}

/// The id of a span's part by its number. Different numbers give different ids, random ones if the span's is: a bijection
/// of the sum (`SplitMix64`, Steele and others 2014), which is never nought.
pub fn part_id(span: [u8; 8], number: u32) -> [u8; 8] {
    let step = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut mixed = u64::from_be_bytes(span).wrapping_add(step);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1).to_be_bytes()
}

/// Where a `traceparent` has the id of the span.
const SPAN_ID: std::ops::Range<usize> = 36..52;

/// Writes the id of another span of the same trace over the one in a `traceparent`; one that is none stays as it is.
pub fn replace_span_id(traceparent: &mut [u8], id: [u8; 8]) {
    if traceparent.len() == TRACEPARENT_LENGTH
        && let Some(digits) = traceparent.get_mut(SPAN_ID)
    {
        write_hex(&id, digits);
    }
}

/// Which traces are recorded: a share of them, told by the last eight bytes of their ids, which are random. So every
/// instance says the same of a trace, and so does a service whose own sampler goes by the same bytes (OpenTelemetry's
/// `traceidratio`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Ids below are recorded; past 64 bits, all are.
    below: u128,
    /// Whether what a trusted peer has decided of a trace goes before that.
    heeds_parents: bool,
}

impl Default for Sampler {
    /// Every trace.
    fn default() -> Self {
        Self::new(1.0, true)
    }
}

impl Sampler {
    /// Takes this share of all traces, from 0 to 1, but for those that a trusted peer has decided of, if it heeds that.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 2^64")]
    pub fn new(ratio: f64, heeds_parents: bool) -> Self {
        Self { below: (ratio.clamp(0.0, 1.0) * 2_f64.powi(64)) as u128, heeds_parents }
    }

    /// Whether a trace is recorded, of which a trusted peer may have decided.
    #[inline]
    pub fn decides(self, trace_id: &[u8; 16], decided: Option<bool>) -> bool {
        decided.filter(|_| self.heeds_parents).unwrap_or_else(|| self.takes(trace_id))
    }

    /// Whether a trace is recorded.
    #[inline]
    pub fn takes(self, trace_id: &[u8; 16]) -> bool {
        let random = trace_id.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        u128::from(random) < self.below
    }
}

/// Eight random bytes that are not all zero.
#[inline]
fn span_id(rng: &mut Rng) -> [u8; 8] {
    rng.u64(1..).to_be_bytes()
}

/// Every byte as two lower-case hexadecimal digits.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [DIGITS[byte / 16], DIGITS[byte % 16]];
        byte += 1;
    }
    table
};

/// Writes `bytes` as lower-case hexadecimal digits; `out` has two places for each.
#[inline]
pub(crate) fn write_hex(bytes: &[u8], out: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = HEX[usize::from(*byte)];
    }
}

/// The bytes of `N` pairs of digits; lower case only, as the recommendation asks.
fn hex_bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, &[high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = (nibble(high)? << 4) | nibble(low)?;
    }
    Some(bytes)
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{RequestId, Rng, Sampler, TRACEPARENT_LENGTH, TraceContext, part_id};
    use expect_test::{Expect, expect};
    use proptest::prelude::{any, prop, prop_assert_eq, prop_assert_ne, proptest};

    fn check_id(incoming: &str, expected: &Expect) {
        expected.assert_eq(&format!("{:?}", RequestId::accept(incoming.as_bytes())));
    }

    #[test]
    fn request_ids_from_outside() {
        check_id("a1b2c3d4", &expect!["Some(a1b2c3d4)"]);
        check_id("Az09._-x", &expect!["Some(Az09._-x)"]);
        check_id("a1b2c3d", &expect!["None"]);
        check_id("", &expect!["None"]);
        check_id("a1b2 c3d4", &expect!["None"]);
        check_id("a1b2c3d4\r\nX: y", &expect!["None"]);
        check_id("a1b2c3d4é", &expect!["None"]);
        check_id("{a1b2c3d4}", &expect!["None"]);
        assert!(RequestId::accept(&[b'x'; 64]).is_some());
        assert_eq!(RequestId::accept(&[b'x'; 65]), None);
        assert_eq!(RequestId::accept(&[b'x'; 256 + 8]), None, "the length does not wrap");
    }

    #[test]
    fn a_seed_replays_ids() {
        let mut rng = Rng::with_seed(7);
        expect!["hmww7rshs2zbc013xh2d9q6xh3"].assert_eq(RequestId::generate(&mut rng).as_str());
        expect!["kbr2jk1b1frfbhcz9ame02sap7"].assert_eq(RequestId::generate(&mut rng).as_str());
    }

    fn check_trace(value: &str, expected: &Expect) {
        let shown = TraceContext::parse_traceparent(value.as_bytes()).map(|context| {
            let mut out = [0; TRACEPARENT_LENGTH];
            context.write(&mut out);
            String::from_utf8_lossy(&out).into_owned()
        });
        expected.assert_eq(&format!("{shown:?}"));
    }

    #[test]
    fn traceparents_from_outside() {
        const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let known = |flags| format!("{ID}-{flags}");
        check_trace(
            &format!("00-{}", known("01")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")"#]],
        );
        check_trace(
            &format!("00-{}", known("00")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")"#]],
        );
        // Flags that version 00 does not define are not passed on.
        check_trace(
            &format!("00-{}", known("ff")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")"#]],
        );
        check_trace(
            &format!("00-{}", known("02")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")"#]],
        );
        // Ours says nothing behind its flags; a later version may, behind a dash.
        check_trace(&format!("00-{}-more", known("01")), &expect!["None"]);
        check_trace(
            &format!("cc-{}-more", known("01")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")"#]],
        );
        check_trace(
            &format!("cc-{}", known("01")),
            &expect![[r#"Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")"#]],
        );
        check_trace(&format!("cc-{}.more", known("01")), &expect!["None"]);
        check_trace(&format!("ff-{}", known("01")), &expect!["None"]);
        check_trace(&format!("0-{}", known("01")), &expect!["None"]);
        check_trace(&format!("00-{}", known("1")), &expect!["None"]);
        check_trace(&format!("00_{}", known("01")), &expect!["None"]);
        check_trace(&format!(" 00-{}", known("01")), &expect!["None"]);
        check_trace(&format!("00-{}", known("0g")), &expect!["None"]);
        check_trace(&format!("00-{}", known("01").to_uppercase()), &expect!["None"]);
        check_trace("00-00000000000000000000000000000000-00f067aa0ba902b7-01", &expect!["None"]);
        check_trace("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", &expect!["None"]);
        check_trace("", &expect!["None"]);
    }

    #[test]
    fn a_share_of_the_traces_is_recorded_and_a_larger_one_takes_those_of_a_smaller() {
        let mut rng = Rng::with_seed(7);
        let ids: Vec<_> = (0..10_000).map(|_| TraceContext::begin(&mut rng).trace_id).collect();
        let taken = |ratio| ids.iter().filter(|id| Sampler::new(ratio, true).takes(id)).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, ids.len()));
        assert!((900..1100).contains(&taken(0.1)), "{}", taken(0.1));
        assert!(ids.iter().all(|id| Sampler::new(0.5, true).takes(id) || !Sampler::new(0.1, true).takes(id)));
        // At the edges, as OpenTelemetry's samplers for Python and Go have it.
        let id = |low: u64| {
            let mut id = [0xff; 16];
            id[8..].copy_from_slice(&low.to_be_bytes());
            id
        };
        assert!(Sampler::new(1.0, true).takes(&id(u64::MAX)) && !Sampler::new(0.0, true).takes(&id(0)));
        assert!(
            Sampler::new(0.0, true).decides(&id(0), Some(true))
                && !Sampler::new(1.0, true).decides(&id(0), Some(false))
        );
        assert!(
            Sampler::new(1.0, false).decides(&id(0), Some(false)) && !Sampler::new(0.0, true).decides(&id(0), None)
        );
        assert!(Sampler::new(0.5, true).takes(&id((1 << 63) - 1)) && !Sampler::new(0.5, true).takes(&id(1 << 63)));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_kept(incoming in "[A-Za-z0-9._-]{0,70}") {
            let accepted = RequestId::accept(incoming.as_bytes());
            prop_assert_eq!(accepted.is_some(), (8..=64).contains(&incoming.len()));
            if let Some(id) = accepted {
                prop_assert_eq!(id.as_str(), incoming);
            }
        }

        #[test]
        fn ids_of_ours_are_accepted_ones(seed: u64) {
            let mut rng = Rng::with_seed(seed);
            let (one, other) = (RequestId::generate(&mut rng), RequestId::generate(&mut rng));
            prop_assert_eq!(RequestId::accept(one.as_bytes()), Some(one));
            prop_assert_ne!(one, other);
        }

        #[test]
        fn what_is_written_is_read(seed: u64, sampled: bool) {
            let mut rng = Rng::with_seed(seed);
            let begun = TraceContext { sampled, ..TraceContext::begin(&mut rng) };
            let child = begun.child(&mut rng);
            prop_assert_eq!((child.trace_id, child.sampled), (begun.trace_id, sampled));
            prop_assert_ne!(child.parent, begun.parent);
            let mut out = [0; TRACEPARENT_LENGTH];
            child.write(&mut out);
            prop_assert_eq!(TraceContext::parse_traceparent(&out), Some(child));
        }

        #[test]
        fn parts_of_a_span_have_ids_of_their_own(seed: u64) {
            let span = TraceContext::begin(&mut Rng::with_seed(seed));
            let mut ids: Vec<_> = (0..100).map(|number| part_id(span.parent, number)).chain([span.parent]).collect();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), 101);
            let mut out = [0; TRACEPARENT_LENGTH];
            span.write(&mut out);
            super::replace_span_id(&mut out, part_id(span.parent, 3));
            let told = TraceContext { parent: part_id(span.parent, 3), ..span };
            prop_assert_eq!(TraceContext::parse_traceparent(&out), Some(told));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse_traceparent(&bytes);
            let _ = RequestId::accept(&bytes);
        }
    }
}
