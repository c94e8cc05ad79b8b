//! Headers of both versions, whole, in pieces, and what is none.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test stops where it fails"
)]

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// What bytes are, given one at a time; what is left of them stays with whoever gave them.
fn read(bytes: &[u8]) -> String {
    let mut reader = HeaderReader::default();
    for (at, byte) in bytes.iter().enumerate() {
        match reader.handle_input(&[*byte]) {
            Ok((_, Some(told))) => {
                let rest = bytes[at + 1..].escape_ascii().to_string();
                let told = match told {
                    Told::Client(client) => client.to_string(),
                    Told::Nobody => "nobody".to_owned(),
                };
                return if rest.is_empty() { told } else { format!("{told}, and {rest}") };
            }
            Ok((_, None)) => {}
            Err(error) => return format!("{error:?} after {}", at + 1),
        }
    }
    format!("wants {}", reader.wanted())
}

fn check<'a>(headers: impl IntoIterator<Item = (&'a str, Vec<u8>)>, expected: &Expect) {
    let mut told = String::new();
    for (name, header) in headers {
        writeln!(told, "{name} → {}", read(&header)).expect("a string takes it");
    }
    expected.assert_eq(&told);
}

/// A header of version 2 with the length that it has.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];

fn v6() -> Vec<u8> {
    let [source, destination] = ["2001:db8::7", "::1"].map(|text| text.parse::<Ipv6Addr>().expect("one").octets());
    [&source[..], &destination, &[0x12, 0x34, 0, 80]].concat()
}

/// TLVs with the checksum of a header that has these addresses and TLVs.
fn with_checksum(family: u8, addresses: &[u8], before: &[u8], after: &[u8]) -> Vec<u8> {
    let rest = [addresses, before, &[CHECKSUM, 0, 4, 0, 0, 0, 0], after].concat();
    let mut header = binary(0x21, family, &rest);
    let start = FIXED_BYTES + addresses.len() + before.len() + 3;
    let crc = crc32c_without(&header, start).to_be_bytes();
    header[start..start + 4].copy_from_slice(&crc);
    header
}

#[test]
fn lines_of_version_1() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
    let longest =
        "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    let lines = [
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nGET / HTTP/1.1\r\n",
        "PROXY TCP6 2001:db8::7 ::1 4660 80\r\n",
        "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n",
        longest,
        "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        "PROXY UNKNOWN\r\nGET",
        "PROXY UNKNOWN 1 2 whatever\r\n",
        "PROXY UNKNOWN\rGET",
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWNS\r\n",
        &long,
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1\r\n",
        "PROXY TCP4 192.0.2.1  198.51.100.7 56324 443\r\n",
        "PROXY  TCP4 192.0.2.1 198.51.100.7 56324 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n",
        "PROXY TCP4 192.0.02.1 198.51.100.7 56324 443\r\n",
        "PROXY TCP4 192.0.2 198.51.100.7 56324 443\r\n",
        "PROXY TCP4 ::1 ::1 56324 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.7 56324 443\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 056324 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 +5632 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 \r\n",
        "PROXY TCP5 192.0.2.1 198.51.100.7 1 2\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.7 1 2\r\n",
        "PROXY TCP4 192.0.2.1\t198.51.100.7 1 2\r\n",
        "PROXY\r\n",
        "proxy TCP4",
        "POST / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n",
        "\u{16}\u{3}\u{1}",
        "PROXY TCP4 192.0.2.1 ",
        "",
    ];
    let named = lines.map(|line| (line.escape_debug().to_string(), line.as_bytes().to_vec()));
    check(
        named.iter().map(|(name, line)| (name.as_str(), line.clone())),
        &expect![[r"
            PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nGET / HTTP/1.1\r\n → 192.0.2.1:56324, and GET / HTTP/1.1\r\n
            PROXY TCP6 2001:db8::7 ::1 4660 80\r\n → [2001:db8::7]:4660
            PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n → [::ffff:192.0.2.1]:1
            PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n → [ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535
            PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n → 0.0.0.0:0
            PROXY UNKNOWN\r\nGET → nobody, and GET
            PROXY UNKNOWN 1 2 whatever\r\n → nobody
            PROXY UNKNOWN\rGET → Malformed after 15
            PROXY UNKNOWN\n → Malformed after 14
            PROXY UNKNOWNS\r\n → Malformed after 16
            PROXY UNKNOWN xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n → TooLong after 107
            PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n → Malformed after 41
            PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1\r\n → Malformed after 47
            PROXY TCP4 192.0.2.1  198.51.100.7 56324 443\r\n → Malformed after 46
            PROXY  TCP4 192.0.2.1 198.51.100.7 56324 443\r\n → Malformed after 46
            PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n → Malformed after 46
            PROXY TCP4 192.0.02.1 198.51.100.7 56324 443\r\n → Malformed after 46
            PROXY TCP4 192.0.2 198.51.100.7 56324 443\r\n → Malformed after 43
            PROXY TCP4 ::1 ::1 56324 443\r\n → Malformed after 30
            PROXY TCP6 192.0.2.1 198.51.100.7 56324 443\r\n → Malformed after 45
            PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n → Malformed after 33
            PROXY TCP4 192.0.2.1 198.51.100.7 056324 443\r\n → Malformed after 46
            PROXY TCP4 192.0.2.1 198.51.100.7 +5632 443\r\n → Malformed after 45
            PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n → Malformed after 45
            PROXY TCP4 192.0.2.1 198.51.100.7 1 \r\n → Malformed after 38
            PROXY TCP5 192.0.2.1 198.51.100.7 1 2\r\n → Malformed after 39
            PROXY tcp4 192.0.2.1 198.51.100.7 1 2\r\n → Malformed after 39
            PROXY TCP4 192.0.2.1\t198.51.100.7 1 2\r\n → Malformed after 21
            PROXY\r\n → Malformed after 6
            proxy TCP4 → Malformed after 1
            POST / HTTP/1.1\r\n → Malformed after 2
            GET / HTTP/1.1\r\n → Malformed after 1
            \u{16}\u{3}\u{1} → Malformed after 1
            PROXY TCP4 192.0.2.1  → wants 13
             → wants 15
        "]],
    );
}

#[test]
fn headers_of_version_2() {
    let v6 = v6();
    let tlv = [0x04, 0, 2, 7, 7];
    let path = [7; 216];
    let mut wrong = with_checksum(0x11, V4, &tlv, &[]);
    wrong[FIXED_BYTES] ^= 1;
    let mut cut = binary(0x21, 0x11, V4);
    cut.truncate(20);
    let behind = [&binary(0x21, 0x11, V4)[..], b"GET"].concat();
    let longest = binary(0x21, 0x11, &[V4, &[0x04, 2, 0xf9], &[0; 0x2f9]].concat());
    let fits = binary(0x21, 0x11, &[V4, &[0x04, 1, 0xf9], &[0; 0x1f9]].concat());
    let doubled = with_checksum(0x11, V4, &[CHECKSUM, 0, 4, 0, 0, 0, 0], &[]);
    let mut signature = binary(0x21, 0x11, V4);
    signature[11] = b'\r';
    check(
        [
            ("IPv4", binary(0x21, 0x11, V4)),
            ("with bytes behind it", behind),
            ("IPv6", binary(0x21, 0x21, &v6)),
            ("a path", binary(0x21, 0x31, &path)),
            ("a TLV", binary(0x21, 0x11, &[V4, &tlv].concat())),
            ("no TLV of none", binary(0x21, 0x11, &[V4, &[0x04, 0, 0]].concat())),
            ("a checksum", with_checksum(0x11, V4, &tlv, &tlv)),
            ("a checksum of IPv6", with_checksum(0x21, &v6, &[], &[])),
            ("a checksum of nobody", with_checksum(0x00, &[], &[], &tlv)),
            ("a wrong checksum", wrong),
            ("a short checksum", binary(0x21, 0x11, &[V4, &[CHECKSUM, 0, 3, 1, 2, 3]].concat())),
            ("two checksums", doubled),
            ("LOCAL", binary(0x20, 0x00, &[])),
            ("LOCAL with addresses", binary(0x20, 0x11, V4)),
            ("LOCAL with anything", binary(0x20, 0xff, b"anything")),
            ("UNSPEC", binary(0x21, 0x00, &[])),
            ("UNSPEC with no TLVs", binary(0x21, 0x00, b"anything")),
            ("as long as it may be", fits),
            ("longer", longest),
            ("a TLV without its end", binary(0x21, 0x11, &[V4, &[0x04, 0, 9, 1]].concat())),
            ("a TLV without its length", binary(0x21, 0x11, &[V4, &[0x04, 0]].concat())),
            ("too short for IPv4", binary(0x21, 0x11, &V4[..11])),
            ("too short for IPv6", binary(0x21, 0x21, &v6[..35])),
            ("too short for a path", binary(0x21, 0x31, &path[..215])),
            ("a datagram", binary(0x21, 0x12, V4)),
            ("a family of none", binary(0x21, 0x41, V4)),
            ("a command of none", binary(0x22, 0x11, V4)),
            ("version 1", binary(0x11, 0x11, V4)),
            ("version 3", binary(0x31, 0x11, V4)),
            ("another signature", signature),
            ("half", cut),
            ("half a signature", SIGNATURE[..6].to_vec()),
        ],
        &expect![[r"
            IPv4 → 192.0.2.1:56324
            with bytes behind it → 192.0.2.1:56324, and GET
            IPv6 → [2001:db8::7]:4660
            a path → nobody
            a TLV → 192.0.2.1:56324
            no TLV of none → 192.0.2.1:56324
            a checksum → 192.0.2.1:56324
            a checksum of IPv6 → [2001:db8::7]:4660
            a checksum of nobody → nobody
            a wrong checksum → Checksum after 40
            a short checksum → Malformed after 34
            two checksums → Malformed after 42
            LOCAL → nobody
            LOCAL with addresses → nobody
            LOCAL with anything → nobody
            UNSPEC → nobody
            UNSPEC with no TLVs → Malformed after 24
            as long as it may be → 192.0.2.1:56324
            longer → TooLong after 16
            a TLV without its end → Malformed after 32
            a TLV without its length → Malformed after 30
            too short for IPv4 → Malformed after 27
            too short for IPv6 → Malformed after 51
            too short for a path → Malformed after 231
            a datagram → Malformed after 28
            a family of none → Malformed after 28
            a command of none → Malformed after 28
            version 1 → Malformed after 28
            version 3 → Malformed after 28
            another signature → Malformed after 12
            half → wants 8
            half a signature → wants 9
        "]],
    );
}

#[test]
fn the_checksum_is_the_one_of_the_specification() {
    // RFC 3720, appendix B.4.
    let ascending: Vec<u8> = (0..32).collect();
    for (bytes, wanted) in [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&ascending, 0x46dd_794e)] {
        assert_eq!(crc32c_without(bytes, usize::MAX), wanted);
    }
}

#[test]
fn a_usual_header_takes_few_reads() {
    for (header, reads_max) in [
        (b"PROXY TCP4 192.168.100.200 192.168.100.201 56324 443\r\n".to_vec(), 8),
        (b"PROXY TCP6 2001:db8:1:2:3:4:5:6 2001:db8::1 56324 443\r\n".to_vec(), 12),
        (binary(0x21, 0x11, V4), 3),
    ] {
        let (mut reader, mut at, mut reads) = (HeaderReader::default(), 0, 0);
        while at < header.len() {
            let end = at + reader.wanted();
            reader.handle_input(&header[at..end]).expect("a header");
            (at, reads) = (end, reads + 1);
        }
        assert!(reads <= reads_max, "{reads} of {}", header.escape_ascii());
    }
}

prop_compose! {
    fn any_address()(is_v4: bool, v4: u32, v6: u128) -> IpAddr {
        if is_v4 { Ipv4Addr::from(v4).into() } else { Ipv6Addr::from(v6).into() }
    }
}

proptest! {
    #[test]
    fn what_is_told_is_what_was_meant_in_any_pieces(
        address in any_address(),
        port: u16,
        is_binary: bool,
        rest in prop::collection::vec(any::<u8>(), 0..8),
        piece in 1_u8..40,
    ) {
        let header = match (address, is_binary) {
            (IpAddr::V4(_), false) => format!("PROXY TCP4 {address} 127.0.0.1 {port} 80\r\n").into_bytes(),
            (IpAddr::V6(_), false) => format!("PROXY TCP6 {address} ::1 {port} 80\r\n").into_bytes(),
            (IpAddr::V4(v4), true) => {
                let addresses = [&v4.octets()[..], &[127, 0, 0, 1], &port.to_be_bytes(), &[0, 80]].concat();
                with_checksum(0x11, &addresses, &[], &[])
            }
            (IpAddr::V6(v6), true) => {
                let addresses = [&v6.octets()[..], &[0; 16], &port.to_be_bytes(), &[0, 80]].concat();
                with_checksum(0x21, &addresses, &[], &[])
            }
        };
        let bytes = [&header[..], &rest].concat();
        let told = Told::Client(SocketAddr::new(address, port));
        prop_assert_eq!(HeaderReader::default().handle_input(&bytes), Ok((header.len(), Some(told))));
        fuzz_one(&[&[piece][..], &bytes].concat());
    }

    #[test]
    fn whatever_comes_is_read_alike_in_any_pieces(
        start in prop_oneof![
            Just(Vec::new()),
            Just(b"PROXY TCP4 ".to_vec()),
            Just(b"PROXY TCP6 ".to_vec()),
            Just(b"PROXY UNKNOWN".to_vec()),
            Just(SIGNATURE.to_vec()),
            Just([SIGNATURE, &[0x21, 0x11, 0]].concat()),
            Just([SIGNATURE, &[0x21, 0x00, 0]].concat()),
        ],
        rest in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            "[0-9. :\r\n]{0,110}".prop_map(String::into_bytes),
        ],
        piece: u8,
    ) {
        fuzz_one(&[&[piece][..], &start, &rest].concat());
    }
}
