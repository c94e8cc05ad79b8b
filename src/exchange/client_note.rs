//! What a session remembers of the client that began or renewed it.

use std::net::IpAddr;

/// Bytes of a user agent that are kept: enough to tell devices apart.
const USER_AGENT_MAX: usize = 256;

/// Who asks: for the list of sessions and for slowing down failed logins. Moves between threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientNote {
    /// What the client calls itself: at most 256 bytes, without control characters. Empty if it does not say.
    pub user_agent: String,
    /// Where it calls from: behind trusted proxies, what they say.
    pub address: IpAddr,
}

impl ClientNote {
    /// A note with what fits of the field's value.
    pub fn new(user_agent: &[u8], address: IpAddr) -> Self {
        let shown = String::from_utf8_lossy(user_agent);
        let mut user_agent: String = shown.chars().filter(|character| !character.is_control()).collect();
        user_agent.truncate(user_agent.floor_char_boundary(USER_AGENT_MAX));
        Self { user_agent, address: address.to_canonical() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn a_note_is_bounded_and_shows_nothing_odd() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let note = |text: &[u8]| ClientNote::new(text, address).user_agent;
        assert_eq!(note(b"curl/8\x1b[31m\r\n"), "curl/8[31m");
        assert_eq!(note(b"\xff"), "\u{fffd}");
        assert_eq!(note("é".repeat(200).as_bytes()).len(), 256);
        assert_eq!(note(format!("a{}", "é".repeat(200)).as_bytes()).len(), 255, "no half characters");
        assert_eq!(ClientNote::new(b"", "::ffff:127.0.0.1".parse().unwrap()).address, address);
    }
}
