//! The part of the table of keys that is about tokens: `[auth]` and the sections inside it.

use super::Fallback::{Required, Unset, Value};
use super::{DAY, KIB, Key, Kind, MINUTE, Reload, SECOND, Scope, TIME, keys};

const ALGORITHM: Kind = Kind::Choice(&["HS256", "RS256", "PS256", "ES256", "EdDSA"]);
const CLAIM: Kind = Kind::Text("name of a claim, or a path like `/realm/role`");

pub(super) const AUTH: &[Key] = keys! {
    issuer: Kind::Text("1 to 255 printable ASCII characters"), Value("\"shardgate\""), "\"https://api.example.com\"", Process, Live,
        "`iss` of the gateway's own tokens.";
    audience: Kind::Text("1 to 255 printable ASCII characters"), Value("\"shardgate\""), "\"https://api.example.com\"", Process, Live,
        "`aud` of the gateway's own tokens.";
    access_lifetime: TIME, Value("\"15m\""), "\"5m\"", Each, Live,
        "How long an access token lives; not more than `lifetime_max`.";
    lifetime_max: Kind::Duration(1, 30 * DAY), Value("\"1h\""), "\"2h\"", Each, Live,
        "Own tokens that would live longer than this from now are refused. Revocations are kept as long.";
    leeway: Kind::Duration(0, 5 * MINUTE), Value("\"5s\""), "\"1s\"", Each, Live,
        "How far the clocks of issuers and of the gateway may be apart.";
    token_bytes_max: Kind::Size(KIB, 32 * KIB), Value("\"8KiB\""), "\"4KiB\"", Each, Live,
        "Bytes of a token.";
    cache_entries: Kind::Number(0, 10_000_000), Value("16384"), "100000", Shard, Live,
        "Checked tokens that a shard remembers, about 0.5 KiB each. 0: every token is checked anew.";
    revocations_max: Kind::Number(1024, 10_000_000), Value("100000"), "1000000", Shard, Live,
        "Revocations that a shard holds. When it is full, tokens issued before its oldest ones have to be refreshed early.";
};

pub(super) const AUTH_KEYS: &[Key] = keys! {
    kid: Kind::Text("1 to 255 printable ASCII characters"), Required, "\"2026-11\"", Process, Live,
        "What tokens call it; unique.";
    algorithm: ALGORITHM, Required, "\"ES256\"", Process, Live,
        "The one algorithm that it is used with.";
    file: Kind::Text("path"), Unset("`secret` is given"), "\"/etc/shardgate/token-key.pem\"", Process, Live,
        "The file that holds it: PEM (`PRIVATE KEY`, or `PUBLIC KEY` for a key that only verifies), or an HS256 secret. A secret one may be readable by a group if it is root's or the gateway's own, and by nobody else. A reload reads it anew.";
    secret: Kind::Secret("32 bytes or more for HS256, else PEM"), Unset("`file` is given"), "\"an example of 32 bytes or more: no secret\"", Process, Live,
        "What `file` would hold, for platforms that have variables only: write `\"${TOKEN_KEY}\"`. In PEM, `\\n` may stand for a line's end. A process keeps its variables, so another key takes a restart.";
    sign: Kind::Boolean, Unset("`true` for the first key when no key says"), "true", Process, Live,
        "Whether new tokens are signed with it. At most one key; with none, nobody can log in.";
};

pub(super) const AUTH_ISSUERS: &[Key] = keys! {
    issuer: Kind::Text("1 to 255 printable ASCII characters"), Required, "\"https://id.example.com/\"", Process, Live,
        "`iss` of its tokens, to the letter.";
    audiences: Kind::List("text"), Value("[]"), "[\"https://api.example.com\"]", Process, Live,
        "Its tokens name one of these in `aud`. Empty: `aud` is not looked at, so tokens that it issued for others are taken too.";
    jwks_url: Kind::Text("URL"), Unset("`jwks_file` is given"), "\"https://id.example.com/jwks.json\"", Process, Live,
        "Where its keys are fetched. Redirects are not followed.";
    jwks_file: Kind::Text("path"), Unset("`jwks_url` is given"), "\"/etc/shardgate/jwks.json\"", Process, Live,
        "The file that holds its keys; a reload reads it again.";
    ca_file: Kind::Text("path"), Unset("the system's certificates"), "\"/etc/shardgate/ca.pem\"", Process, Live,
        "Certificates (PEM) that the server of `jwks_url` is checked with, instead of the system's.";
    algorithms: Kind::List("`RS256`, `PS256`, `ES256` or `EdDSA`"), Value("[\"RS256\", \"PS256\", \"ES256\", \"EdDSA\"]"), "[\"ES256\"]", Process, Live,
        "Algorithms that its keys are used with; each key with one.";
    types: Kind::List("text"), Value("[\"JWT\", \"at+jwt\", \"\"]"), "[\"at+jwt\"]", Process, Live,
        "`typ` of its tokens, in any case; `\"\"` stands for tokens without.";
    sub_prefix: Kind::Text("up to 127 printable ASCII characters"), Unset("`issuer` and a `|`"), "\"partner:\"", Process, Live,
        "What stands before its `sub` and `sid` here, in `X-User-Id`, logs and revocations, so that they are nobody else's. `\"\"`: its users are the gateway's own, and their ids the same.";
    roles: Kind::List("name of a role, or `*` for any"), Value("[]"), "[\"user\"]", Process, Live,
        "Roles that it may give, in the order in which the services are told them. Any other is as if its token did not say it.";
    permissions: Kind::List("permission, as `events:write`; `events:*` stands for all that begin so, `*` for all"), Value("[]"), "[\"events:*\"]", Process, Live,
        "Permissions that it may give. Any other is as if its token did not say it.";
    role: Kind::Text("name of a role"), Unset("none"), "\"user\"", Process, Live,
        "The role of its callers whose token gives none of `roles`.";
    claim_role: CLAIM, Value("\"role\""), "\"https://example.com/role\"", Process, Live,
        "The claim that is the caller's roles: a list, or one text that is one role. In `scope` and `scp` a text is a list with spaces.";
    claim_permissions: CLAIM, Value("\"permissions\""), "\"scope\"", Process, Live,
        "The claim that is the caller's permissions: a list, or one text with spaces.";
    claim_email: CLAIM, Value("\"email\""), "\"mail\"", Process, Live,
        "The claim that is the caller's e-mail address.";
    claim_sid: CLAIM, Value("\"sid\""), "\"session_state\"", Process, Live,
        "The claim that is the session's id.";
    lifetime_max: Kind::Duration(1, 30 * DAY), Value("\"1d\""), "\"1h\"", Each, Live,
        "Its tokens that would live longer than this from now are refused.";
    refresh_interval: Kind::Duration(SECOND, 7 * DAY), Value("\"10m\""), "\"1h\"", Process, Live,
        "How often its keys are fetched anew.";
    unknown_key_cooldown: Kind::Duration(100, DAY), Value("\"30s\""), "\"10s\"", Process, Live,
        "A token whose key is not known has the keys fetched at once, but not sooner than this after the last time.";
};
