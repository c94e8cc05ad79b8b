//! The part of the table that is about tokens: `[auth]` and the sections inside it.

use super::section::{section, words};
use super::{DAY, KIB, MINUTE, SECOND};
use crate::config::key::Kind;
use crate::config::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

impl Kind {
    const CLAIM: Self = Self::Text("name of a claim, or a path like `/realm/role`");
    const PRINTABLE: Self = Self::Text("1 to 255 printable ASCII characters");
}

section! {
    /// Tokens: what holds for all of them. See `docs/tokens.md`.
    Auth = Once "auth", per Each, by Reload {
        /// `iss` of the gateway's own tokens.
        issuer: String as PRINTABLE = "shardgate", e.g. "https://api.example.com", per Process;
        /// `aud` of the gateway's own tokens.
        audience: String as PRINTABLE = "shardgate", e.g. "https://api.example.com", per Process;
        /// How long an access token lives; not more than `lifetime_max`.
        access_lifetime: Duration = "15m", e.g. "5m";
        /// Own tokens that would live longer than this from now are refused. Revocations are kept as long.
        lifetime_max: Duration as Duration(1, 30 * DAY) = "1h", e.g. "2h";
        /// How far the clocks of issuers and of the gateway may be apart.
        leeway: Duration as Duration(0, 5 * MINUTE) = "5s", e.g. "1s";
        /// Bytes of a token.
        token_bytes_max: usize as Size(KIB, 32 * KIB) = "8KiB", e.g. "4KiB";
        /// Checked tokens that a shard remembers, about 0.5 KiB each. 0: every token is checked anew.
        cache_entries: usize as Number(0, 10_000_000) = 16384, e.g. 100000, per Shard;
        /// Revocations that a shard holds. When it is full, tokens issued before its oldest ones have to be refreshed
        /// early.
        revocations_max: usize as Number(1024, 10_000_000) = 100000, e.g. 1000000, per Shard;
    } with {
        /// Own keys; kids are unique, one at most signs. None: one is made and kept in the data directory.
        keys: Vec<TokenKey>,
        /// Other issuers whose tokens are taken; names are unique and none is `issuer`.
        issuers: Vec<TokenIssuer>,
    }
}

section! {
    /// The gateway's own keys. One signs; the others verify what they signed before. Without any, one is made and kept
    /// in the data directory.
    TokenKey = Listed "auth.keys", per Process, by Reload {
        /// What tokens call it; unique.
        kid: String as PRINTABLE = required, e.g. "2026-11";
        /// The one algorithm that it is used with.
        algorithm: Algorithm = required, e.g. "ES256";
        /// The file that holds it: PEM (`PRIVATE KEY`, or `PUBLIC KEY` for a key that only verifies), or an HS256
        /// secret. A secret one may be readable by a group if it is root's or the gateway's own, and by nobody else. A
        /// reload reads it anew.
        file: Option<PathBuf> = unset "`secret` is given", e.g. "/etc/shardgate/token-key.pem";
        /// What `file` would hold, for platforms that have variables only: write `"${TOKEN_KEY}"`. In PEM, `\n` may
        /// stand for a line's end. A process keeps its variables, so another key takes a restart.
        secret: Option<Secret> as Secret("32 bytes or more for HS256, else PEM") = unset "`file` is given",
            e.g. "an example of 32 bytes or more: no secret";
        /// Whether new tokens are signed with it. At most one key; with none, nobody can log in.
        sign: bool = unset "`true` for the first key when no key says", e.g. true;
    }
}

words! {
    /// What a key is used with.
    #[derive(Default)]
    Algorithm {
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// RSA, PKCS#1 v1.5, with SHA-256.
        Rs256 = "RS256",
        /// RSA-PSS with SHA-256.
        Ps256 = "PS256",
        /// ECDSA on P-256 with SHA-256.
        #[default]
        Es256 = "ES256",
        /// Ed25519.
        EdDsa = "EdDSA",
    }
}

section! {
    /// Other issuers whose tokens are taken, by the keys that they publish.
    TokenIssuer = Listed "auth.issuers", per Process, by Reload {
        /// `iss` of its tokens, to the letter.
        issuer: String as PRINTABLE = required, e.g. "https://id.example.com/";
        /// Its tokens name one of these in `aud`. Empty: `aud` is not looked at, so tokens that it issued for others
        /// are taken too.
        audiences: Vec<String> as List("text") = [], e.g. ["https://api.example.com"];
        /// Where its keys are fetched. Redirects are not followed.
        jwks_url: Option<String> as Text("URL") = unset "`jwks_file` is given", e.g. "https://id.example.com/jwks.json";
        /// The file that holds its keys; a reload reads it again.
        jwks_file: Option<PathBuf> = unset "`jwks_url` is given", e.g. "/etc/shardgate/jwks.json";
        /// Certificates (PEM) that the server of `jwks_url` is checked with, instead of the system's.
        ca_file: Option<PathBuf> = unset "the system's certificates", e.g. "/etc/shardgate/ca.pem";
        /// Algorithms that its keys are used with; each key with one.
        algorithms: Vec<Algorithm> as List("`RS256`, `PS256`, `ES256` or `EdDSA`")
            = ["RS256", "PS256", "ES256", "EdDSA"], e.g. ["ES256"];
        /// `typ` of its tokens, in any case; `""` stands for tokens without.
        types: Vec<String> as List("text") = ["JWT", "at+jwt", ""], e.g. ["at+jwt"];
        /// What stands before its `sub` and `sid` here, in `X-User-Id`, logs and revocations, so that they are nobody
        /// else's. `""`: its users are the gateway's own, and their ids the same.
        sub_prefix: Option<String> as Text("up to 127 printable ASCII characters") = unset "`issuer` and a `|`",
            e.g. "partner:";
        /// Roles that it may give, in the order in which the services are told them. Any other is as if its token did
        /// not say it.
        roles: Vec<String> as List("name of a role, or `*` for any") = [], e.g. ["user"];
        /// Permissions that it may give. Any other is as if its token did not say it.
        permissions: Vec<String> as GRANTED = [], e.g. ["events:*"];
        /// The role of its callers whose token gives none of `roles`.
        role: Option<String> as Text("name of a role") = unset "none", e.g. "user";
        /// The claim that is the caller's roles: a list, or one text that is one role. In `scope` and `scp` a text is a
        /// list with spaces.
        claim_role: String as CLAIM = "role", e.g. "https://example.com/role";
        /// The claim that is the caller's permissions: a list, or one text with spaces.
        claim_permissions: String as CLAIM = "permissions", e.g. "scope";
        /// The claim that is the caller's e-mail address.
        claim_email: String as CLAIM = "email", e.g. "mail";
        /// The claim that is the session's id.
        claim_sid: String as CLAIM = "sid", e.g. "session_state";
        /// Its tokens that would live longer than this from now are refused.
        lifetime_max: Duration as Duration(1, 30 * DAY) = "1d", e.g. "1h", per Each;
        /// How often its keys are fetched anew.
        refresh_interval: Duration as Duration(SECOND, 7 * DAY) = "10m", e.g. "1h";
        /// A token whose key is not known has the keys fetched at once, but not sooner than this after the last time.
        unknown_key_cooldown: Duration as Duration(100, DAY) = "30s", e.g. "10s";
    }
}
