//! Tokens that no gateway may take, with the code and the flaw of each: RFC 8725, the appendices of RFC 7515, what other
//! gateways took by mistake, and plain garbage. Read by the tests of `auth` and by those that send them over the wire.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use ring::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use ring::{digest, hmac};
use serde_json::{Value, json};

/// The secret of the key `hs`; `rs`, `ps`, `es` and `ed` are files beside this one.
pub const SECRET: &str = "the secret of these tests, of 32 bytes or more";

/// A token that is refused.
pub struct Case {
    /// What is hostile about it.
    pub name: &'static str,
    /// What the bearer shows.
    pub token: String,
    /// The code of the answer.
    pub code: &'static str,
    /// What is found wrong with it.
    pub flaw: &'static str,
}

/// A key of these tests.
pub fn pem(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name);
    std::fs::read(path).expect("the key is there")
}

fn der(name: &str) -> Vec<u8> {
    let text = String::from_utf8(pem(name)).expect("a PEM file");
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(body).expect("a PEM file")
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn join(header: &str, payload: &str) -> String {
    format!("{}.{}", b64(header), b64(payload))
}

fn mac(algorithm: hmac::Algorithm, secret: &[u8], message: &str) -> String {
    b64(hmac::sign(&hmac::Key::new(algorithm, secret), message.as_bytes()))
}

/// Under a right HS256 signature.
pub fn hs(header: &str, payload: &str) -> String {
    signed(&join(header, payload))
}

fn signed(message: &str) -> String {
    format!("{message}.{}", mac(hmac::HMAC_SHA256, SECRET.as_bytes(), message))
}

fn rsa(header: &str, payload: &str, encoding: &'static dyn RsaEncoding) -> String {
    let pair = RsaKeyPair::from_pkcs8(&der("rsa.pem")).expect("an RSA key");
    let message = join(header, payload);
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).expect("signed");
    format!("{message}.{}", b64(signature))
}

fn es_pair(is_der: bool) -> EcdsaKeyPair {
    let encoding = if is_der { &ECDSA_P256_SHA256_ASN1_SIGNING } else { &ECDSA_P256_SHA256_FIXED_SIGNING };
    EcdsaKeyPair::from_pkcs8(encoding, &der("p256.pem"), &SystemRandom::new()).expect("a P-256 key")
}

fn es(header: &str, payload: &str, is_der: bool) -> String {
    let message = join(header, payload);
    let signature = es_pair(is_der).sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
    format!("{message}.{}", b64(signature))
}

fn ed(header: &str, payload: &str) -> String {
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der("ed25519.pem")).expect("an Ed25519 key");
    let message = join(header, payload);
    format!("{message}.{}", b64(pair.sign(message.as_bytes())))
}

/// Claims that would pass at this Unix time.
pub fn claims(now: u64) -> Value {
    json!({
        "sub": "42", "email": "ada@example.com", "role": "user", "permissions": [], "sid": "s_1", "jti": "j_1",
        "iss": "shardgate", "aud": "shardgate", "iat": now, "exp": now + 900, "auth_time": now,
    })
}

/// Gathers cases; each is wrong in one way.
struct Table {
    now: u64,
    cases: Vec<Case>,
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT","kid":"hs"}"#;

impl Table {
    fn add(&mut self, name: &'static str, flaw: &'static str, token: String) {
        let code = if flaw == "Expired" { "token_expired" } else { "token_invalid" };
        self.cases.push(Case { name, token, code, flaw });
    }

    fn good(&self) -> String {
        claims(self.now).to_string()
    }

    /// A right signature over this header.
    fn header(&mut self, name: &'static str, flaw: &'static str, header: &str) {
        let token = hs(header, &self.good());
        self.add(name, flaw, token);
    }

    /// A right signature over the header with these members besides.
    fn member(&mut self, name: &'static str, flaw: &'static str, member: &str) {
        self.header(name, flaw, &format!("{},{member}}}", HEADER.trim_end_matches('}')));
    }

    /// A right signature over the claims with this member instead; `null` takes it out.
    fn claim(&mut self, name: &'static str, flaw: &'static str, claim: &str, value: Value) {
        let mut claims = claims(self.now);
        match value {
            Value::Null => drop(claims.as_object_mut().expect("an object").remove(claim)),
            value => claims[claim] = value,
        }
        self.add(name, flaw, hs(HEADER, &claims.to_string()));
    }

    /// A right signature over these claims as text.
    fn payload(&mut self, name: &'static str, flaw: &'static str, payload: &str) {
        self.add(name, flaw, hs(HEADER, payload));
    }
}

/// All of them, at this Unix time.
pub fn cases(now: u64) -> Vec<Case> {
    let mut table = Table { now, cases: Vec::new() };
    algorithms(&mut table);
    key_confusion(&mut table);
    headers(&mut table);
    forms(&mut table);
    encodings(&mut table);
    signatures(&mut table);
    claim_types(&mut table);
    times(&mut table);
    table.cases
}

/// RFC 8725 §2.1, §3.1, §3.2.
fn algorithms(table: &mut Table) {
    let good = table.good();
    for (name, alg) in [("alg none", "none"), ("alg None", "None"), ("alg NONE", "NONE"), ("alg nOnE", "nOnE")] {
        let message = join(&format!(r#"{{"alg":"{alg}"}}"#), &good);
        table.add(name, "AlgorithmNone", format!("{message}."));
    }
    // RFC 7515 A.5, RFC 7519 §6.1: the example of an unsecured token.
    let unsecured = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    table.add("RFC 7515 A.5, unsecured", "AlgorithmNone", unsecured.to_owned());
    let message = join(r#"{"alg":"none","kid":"hs"}"#, &good);
    table.add("alg none with a right signature", "AlgorithmNone", signed(&message));
    table.header("no alg", "AlgorithmMissing", r#"{"typ":"JWT","kid":"hs"}"#);
    table.header("alg empty", "AlgorithmMissing", r#"{"alg":"","kid":"hs"}"#);
    table.header("alg a number", "AlgorithmMissing", r#"{"alg":256,"kid":"hs"}"#);
    table.header("alg a list", "AlgorithmMissing", r#"{"alg":["HS256"],"kid":"hs"}"#);
    table.header("alg null", "AlgorithmMissing", r#"{"alg":null,"kid":"hs"}"#);
    table.header("alg in small letters", "Algorithm", r#"{"alg":"hs256","kid":"hs"}"#);
    table.header("alg with a space", "Algorithm", r#"{"alg":"HS256 ","kid":"hs"}"#);
    table.header("alg with a NUL", "Algorithm", r#"{"alg":"HS256\u0000","kid":"hs"}"#);
    table.header("alg of another name", "Algorithm", r#"{"alg":"EdDSA","kid":"hs"}"#);
    for (name, alg, algorithm) in [("HS384", "HS384", hmac::HMAC_SHA384), ("HS512", "HS512", hmac::HMAC_SHA512)] {
        let message = join(&format!(r#"{{"alg":"{alg}","kid":"hs"}}"#), &good);
        let signature = mac(algorithm, SECRET.as_bytes(), &message);
        table.add(name, "Algorithm", format!("{message}.{signature}"));
    }
    // Signed rightly by an algorithm that is not the key's.
    table.add(
        "RS256 with the key of PS256",
        "Algorithm",
        rsa(r#"{"alg":"RS256","kid":"ps"}"#, &good, &RSA_PKCS1_SHA256),
    );
    table.add("PS256 with the key of RS256", "Algorithm", rsa(r#"{"alg":"PS256","kid":"rs"}"#, &good, &RSA_PSS_SHA256));
    table.add("RS512", "Algorithm", rsa(r#"{"alg":"RS512","kid":"rs"}"#, &good, &RSA_PKCS1_SHA512));
    table.add("ES256K", "Algorithm", es(r#"{"alg":"ES256K","kid":"es"}"#, &good, false));
    // One padding for the other under the right name.
    table.add("PSS padding called RS256", "Signature", rsa(r#"{"alg":"RS256","kid":"rs"}"#, &good, &RSA_PSS_SHA256));
    table.add(
        "PKCS1 padding called PS256",
        "Signature",
        rsa(r#"{"alg":"PS256","kid":"ps"}"#, &good, &RSA_PKCS1_SHA256),
    );
    table.add("SHA-512 called RS256", "Signature", rsa(r#"{"alg":"RS256","kid":"rs"}"#, &good, &RSA_PKCS1_SHA512));
}

/// RFC 8725 §2.1: a public key as the secret of an HMAC.
fn key_confusion(table: &mut Table) {
    let good = table.good();
    for (name, kid, secret) in [
        ("RSA PEM as secret", "rs", pem("rsa.pub.pem")),
        ("RSA PEM without its last newline as secret", "rs", pem("rsa.pub.pem").trim_ascii_end().to_vec()),
        ("RSA DER as secret", "rs", der("rsa.pub.pem")),
        ("EC PEM as secret", "es", pem("p256.pub.pem")),
        ("EC DER as secret", "es", der("p256.pub.pem")),
        ("Ed25519 PEM as secret", "ed", pem("ed25519.pub.pem")),
        ("Ed25519 key as secret", "ed", der("ed25519.pub.pem")[12..].to_vec()),
    ] {
        let message = join(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), &good);
        let signature = mac(hmac::HMAC_SHA256, &secret, &message);
        table.add(name, "Algorithm", format!("{message}.{signature}"));
        if kid == "rs" {
            let message = join(&format!(r#"{{"alg":"RS256","kid":"{kid}"}}"#), &good);
            let signature = mac(hmac::HMAC_SHA256, &secret, &message);
            table.add("an HMAC under the name RS256", "Signature", format!("{message}.{signature}"));
        }
    }
    table.add(
        "an EC signature by the kid of the secret",
        "Algorithm",
        es(r#"{"alg":"ES256","kid":"hs"}"#, &good, false),
    );
    table.add("an EC signature by the kid of RSA", "Algorithm", es(r#"{"alg":"ES256","kid":"rs"}"#, &good, false));
    table.add("an Ed25519 signature called ES256", "Signature", ed(r#"{"alg":"ES256","kid":"es"}"#, &good));
    for (name, secret) in [
        ("an empty secret", ""),
        ("a guessed secret", "secret"),
        ("another secret", "another secret of these tests, of 32 bytes"),
    ] {
        let message = join(HEADER, &good);
        let signature = mac(hmac::HMAC_SHA256, secret.as_bytes(), &message);
        table.add(name, "Signature", format!("{message}.{signature}"));
    }
}

/// RFC 8725 §3.10, §3.11; RFC 7515 §4.1.
fn headers(table: &mut Table) {
    let good = table.good();
    // The token brings the key that it is signed with.
    let pair = es_pair(false);
    let point = ring::signature::KeyPair::public_key(&pair).as_ref();
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..]) });
    table.add("jwk", "EmbeddedKey", es(&json!({ "alg": "ES256", "jwk": jwk }).to_string(), &good, false));
    table.add(
        "jwk beside a kid",
        "EmbeddedKey",
        es(&json!({ "alg": "ES256", "kid": "es", "jwk": jwk }).to_string(), &good, false),
    );
    table.member("jku", "EmbeddedKey", r#""jku":"http://127.0.0.1:1/keys""#);
    table.member("x5u", "EmbeddedKey", r#""x5u":"http://127.0.0.1:1/cert""#);
    table.member("x5c", "EmbeddedKey", r#""x5c":["MIIB"]"#);
    table.member("jwk null", "EmbeddedKey", r#""jwk":null"#);
    table.member("crit of a known name", "Critical", r#""crit":["exp"],"exp":1"#);
    table.member("crit of an unknown name", "Critical", r#""crit":["urn:example"],"urn:example":true"#);
    table.member("crit empty", "Critical", r#""crit":[]"#);
    table.member("crit null", "Critical", r#""crit":null"#);
    // RFC 7515 A.6 / E: the negative test case for crit.
    table.header("RFC 7515 E, crit", "AlgorithmNone", "{\"alg\":\"none\",\r\n \"crit\":[\"http://example.invalid/UNDEFINED\"],\r\n \"http://example.invalid/UNDEFINED\":true\r\n}");
    table.member("b64 false", "HeaderParameter", r#""b64":false"#);
    table.member("zip", "HeaderParameter", r#""zip":"DEF""#);
    table.member("enc", "HeaderParameter", r#""enc":"A128GCM""#);
    table.member("cty of a nested token", "HeaderParameter", r#""cty":"JWT""#);
    table.header("typ of an id token", "Type", r#"{"alg":"HS256","typ":"id+jwt","kid":"hs"}"#);
    table.header("typ of a logout token", "Type", r#"{"alg":"HS256","typ":"logout+jwt","kid":"hs"}"#);
    table.header("typ of a security event", "Type", r#"{"alg":"HS256","typ":"application/secevent+jwt","kid":"hs"}"#);
    table.header("typ a number", "Type", r#"{"alg":"HS256","typ":1,"kid":"hs"}"#);
    table.header("typ null", "Type", r#"{"alg":"HS256","typ":null,"kid":"hs"}"#);
    table.header("no kid where there are several keys", "UnknownKey", r#"{"alg":"HS256"}"#);
    table.header("kid of nobody", "UnknownKey", r#"{"alg":"HS256","kid":"nobody"}"#);
    table.header("kid of another case", "UnknownKey", r#"{"alg":"HS256","kid":"HS"}"#);
    table.header("kid a path", "UnknownKey", r#"{"alg":"HS256","kid":"../../../dev/null"}"#);
    table.header("kid of SQL", "UnknownKey", r#"{"alg":"HS256","kid":"' UNION SELECT 'x"}"#);
    table.header("kid with a NUL", "UnknownKey", r#"{"alg":"HS256","kid":"hs\u0000"}"#);
    table.header("kid empty", "KeyId", r#"{"alg":"HS256","kid":""}"#);
    table.header("kid a number", "KeyId", r#"{"alg":"HS256","kid":1}"#);
    table.header("kid a list", "KeyId", r#"{"alg":"HS256","kid":["hs"]}"#);
    table.header("kid null", "KeyId", r#"{"alg":"HS256","kid":null}"#);
    table.header("kid of 256 bytes", "KeyId", &format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(256)));
    table.header("alg twice", "Duplicate", r#"{"alg":"HS256","kid":"hs","alg":"none"}"#);
    table.header("alg twice, once escaped", "Duplicate", r#"{"alg":"HS256","kid":"hs","\u0061lg":"none"}"#);
    table.header("kid twice", "Duplicate", r#"{"alg":"HS256","kid":"hs","kid":"hs"}"#);
    table.header("a header that is a list", "HeaderJson", r#"["HS256"]"#);
    table.header("a header that is a text", "HeaderJson", r#""HS256""#);
    table.header("a header that is no JSON", "HeaderJson", "{alg:HS256}");
    table.header("a header with more behind it", "HeaderJson", &format!("{HEADER}{{}}"));
    table.header("a header with a byte order mark", "HeaderJson", &format!("\u{feff}{HEADER}"));
    table.member("a deep header", "Depth", &format!(r#""x":{}1{}"#, "[".repeat(200), "]".repeat(200)));
    let many: Vec<String> = (0..70).map(|n| format!(r#""x{n}":0"#)).collect();
    table.member("a header of many members", "Depth", &many.join(","));
}

/// RFC 7515 §3.1, §7.2.
fn forms(table: &mut Table) {
    let good = hs(HEADER, &table.good());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    table.add("one part", "Parts", header.to_owned());
    table.add("two parts", "Parts", format!("{header}.{payload}"));
    table.add("four parts", "Parts", format!("{good}.{signature}"));
    table.add(
        "five parts, as encrypted ones have",
        "Parts",
        format!("{header}.{payload}.{signature}.{payload}.{signature}"),
    );
    table.add("a dot at the end", "Parts", format!("{good}."));
    table.add("a dot in front", "Parts", format!(".{good}"));
    table.add("two dots", "HeaderJson", "..".to_owned());
    table.add("dots alone", "Parts", "....".to_owned());
    table.add("no header", "HeaderJson", format!(".{payload}.{signature}"));
    table.add("no payload", "ClaimsJson", format!("{header}..{signature}"));
    table.add("no signature", "Signature", format!("{header}.{payload}."));
    table.add("longer than any token", "TooLong", hs(HEADER, &format!(r#"{{"x":"{}"}}"#, "x".repeat(8192))));
    table.add("a detached payload", "ClaimsJson", {
        let message = format!("{header}.");
        signed(&message)
    });
    let json = json!({ "payload": payload, "protected": header, "signature": signature }).to_string();
    table.add("the flattened JSON form", "Parts", b64(json));
    // RFC 7515 A.1 to A.4: right signatures of keys that are not ours.
    table.add("RFC 7515 A.1", "Issuer", "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned());
    table.add("RFC 7515 A.3", "Issuer", "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q".to_owned());
    table.add("RFC 7515 A.4", "ClaimsJson", "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn".to_owned());
}

/// RFC 7515 §2, RFC 4648 §3: one spelling and no other.
fn encodings(table: &mut Table) {
    let good = table.good();
    let (header, payload) = (b64(HEADER), b64(&good));
    let signature = |message: &str| mac(hmac::HMAC_SHA256, SECRET.as_bytes(), message);
    for (name, message) in [
        ("a padded header", format!("{}.{payload}", URL_SAFE.encode(HEADER))),
        ("a padded payload", format!("{header}.{}=", b64(format!("{good}  ")))),
        ("white space in the payload", format!("{header}.{} {}", &payload[..10], &payload[10..])),
        ("a newline after the header", format!("{header}%0A.{payload}")),
        (
            "the alphabet with + and /",
            format!("{header}.{}", STANDARD_NO_PAD.encode(format!("{{\"a\":\"???>>>~~~\",{}", &good[1..]))),
        ),
        ("percent-encoding", format!("{header}.{payload}%3D")),
        ("bytes that are no ASCII", format!("{header}.{payload}\u{e9}")),
    ] {
        let signature = signature(&message);
        table.add(name, "Base64", format!("{message}.{signature}"));
    }
    let right = hs(HEADER, &good);
    table.add("a padded signature", "Base64", format!("{right}="));
    // 32 bytes are 43 characters and leave 2 bits over: three more spellings of the same bytes.
    let last = right.chars().last().expect("a signature");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = alphabet.find(last).expect("base64url");
    for (name, bits) in [("stray bits, 1", 1), ("stray bits, 2", 2), ("stray bits, 3", 3)] {
        let other = &alphabet[index + bits..=index + bits];
        table.add(name, "Base64", format!("{}{other}", &right[..right.len() - 1]));
    }
    table.add("a signature of one character", "Base64", format!("{header}.{payload}.A"));
}

fn signatures(table: &mut Table) {
    let good = table.good();
    let right = hs(HEADER, &good);
    let (message, signature) = right.rsplit_once('.').expect("three parts");
    let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    table.add("a signature cut short", "Signature", format!("{message}.{}", b64(&bytes[..31])));
    table.add("a signature of 16 bytes", "Signature", format!("{message}.{}", b64(&bytes[..16])));
    table.add("a signature with a byte more", "Signature", format!("{message}.{}", b64([&bytes[..], &[0]].concat())));
    let mut flipped = bytes;
    flipped[0] ^= 1;
    table.add("a flipped bit", "Signature", format!("{message}.{}", b64(flipped)));
    table.add("zeros", "Signature", format!("{message}.{}", b64([0; 32])));
    let admin = good.replace("\"user\"", "\"admin\"");
    table.add("another payload", "Signature", format!("{}.{signature}", join(HEADER, &admin)));
    table.add("another header", "Signature", format!("{}.{signature}", join(&HEADER.replace("JWT", "jwt"), &good)));
    let hash = digest::digest(&digest::SHA256, message.as_bytes());
    table.add("a hash without a key", "Signature", format!("{message}.{}", b64(hash)));
    // CVE-2022-21449: r and s of 0 fit any text where nobody looks.
    let header = r#"{"alg":"ES256","kid":"es"}"#;
    let message = join(header, &good);
    table.add("ES256 of zeros", "Signature", format!("{message}.{}", b64([0; 64])));
    table.add("ES256 of ones", "Signature", format!("{message}.{}", b64([255; 64])));
    table.add("ES256 of no bytes", "Signature", format!("{message}."));
    table.add("ES256 in DER", "Signature", es(header, &good, true));
    let message = join(r#"{"alg":"EdDSA","kid":"ed"}"#, &good);
    table.add("EdDSA of zeros", "Signature", format!("{message}.{}", b64([0; 64])));
    let message = join(r#"{"alg":"RS256","kid":"rs"}"#, &good);
    table.add("RS256 of zeros", "Signature", format!("{message}.{}", b64([0; 256])));
    let mut one = [0; 256];
    one[255] = 1;
    table.add("RS256 of one", "Signature", format!("{message}.{}", b64(one)));
    // Garbage that says it has expired is garbage.
    let expired = claims(table.now - 10_000).to_string();
    let token = hs(HEADER, &expired);
    table.add("expired and forged", "Signature", format!("{}AAAA", &token[..token.len() - 4]));
}

fn claim_types(table: &mut Table) {
    let good = table.good();
    table.claim("no iss", "Missing", "iss", Value::Null);
    table.claim("iss of nobody", "Issuer", "iss", json!("https://evil.example"));
    table.claim("iss with a slash more", "Issuer", "iss", json!("shardgate/"));
    table.claim("iss a list", "ClaimType", "iss", json!(["shardgate"]));
    table.claim("no aud", "Audience", "aud", Value::Null);
    table.claim("aud of somebody else", "Audience", "aud", json!("billing"));
    table.claim("aud that begins as ours", "Audience", "aud", json!("shardgate.evil.example"));
    table.claim("aud empty", "Audience", "aud", json!([]));
    table.claim("aud of others", "Audience", "aud", json!(["a", "b"]));
    table.claim("aud with a number", "ClaimType", "aud", json!(["shardgate", 1]));
    table.claim("aud an object", "ClaimType", "aud", json!({ "shardgate": true }));
    table.claim("no sub", "Missing", "sub", Value::Null);
    table.claim("sub empty", "Missing", "sub", json!(""));
    table.claim("sub a list of one", "ClaimType", "sub", json!(["42"]));
    table.claim("sub a number", "ClaimType", "sub", json!(42));
    table.claim("sub with a line's end", "ClaimType", "sub", json!("42\r\nX-User-Role: admin"));
    table.claim("sub with a NUL", "ClaimType", "sub", json!("42\u{0}"));
    table.claim("sub with other letters that look alike", "ClaimType", "sub", json!("\u{ff14}\u{ff12}"));
    table.claim("sub of 256 bytes", "ClaimType", "sub", json!("4".repeat(256)));
    table.claim("role an object", "ClaimType", "role", json!({ "admin": true }));
    table.claim("several roles", "Roles", "role", json!(["user", "admin"]));
    table.claim("two roles in one text", "ClaimType", "role", json!("user,admin"));
    table.claim("role with a line's end", "ClaimType", "role", json!("user\nadmin"));
    table.claim("sid a list of one", "ClaimType", "sid", json!(["s_1"]));
    table.claim("sid a number", "ClaimType", "sid", json!(1));
    table.claim("sid with a tab", "ClaimType", "sid", json!("s\t1"));
    table.claim("permissions a number", "ClaimType", "permissions", json!(1));
    table.claim("permissions with a list", "ClaimType", "permissions", json!([["*"]]));
    table.claim("email a list of two", "ClaimType", "email", json!(["a@x", "b@x"]));
    table.claim("email with a line's end", "ClaimType", "email", json!("a@x\r\nb: c"));
    table.payload("claims that are a list", "ClaimsJson", "[]");
    table.payload("claims that are null", "ClaimsJson", "null");
    table.payload("claims that are no JSON", "ClaimsJson", "sub=42");
    table.payload("claims with more behind them", "ClaimsJson", &format!("{good}{good}"));
    table.payload("claims with a comment", "ClaimsJson", &format!("/**/{good}"));
    table.payload("half of a surrogate pair", "ClaimsJson", &good.replace("\"42\"", r#""\ud800""#));
    table.payload("sub twice", "Duplicate", &format!(r#"{},"sub":"1"}}"#, good.trim_end_matches('}')));
    table.payload("exp twice", "Duplicate", &format!(r#"{},"exp":9999999999}}"#, good.trim_end_matches('}')));
    table.payload(
        "role twice, once escaped",
        "Duplicate",
        &format!(r#"{},"r\u006fle":"admin"}}"#, good.trim_end_matches('}')),
    );
    table.payload(
        "a member twice further in",
        "Duplicate",
        &format!(r#"{},"x":{{"a":1,"a":2}}}}"#, good.trim_end_matches('}')),
    );
    table.payload(
        "deep claims",
        "Depth",
        &format!(r#"{},"x":{}1{}}}"#, good.trim_end_matches('}'), "[".repeat(300), "]".repeat(300)),
    );
    let header = b64(HEADER);
    let message = format!("{header}.{}", b64([good.as_bytes(), b"\xff"].concat()));
    table.add("claims that are no UTF-8", "ClaimsJson", signed(&message));
}

fn times(table: &mut Table) {
    let now = table.now;
    table.claim("no exp", "Missing", "exp", Value::Null);
    table.claim("exp as text", "ClaimType", "exp", json!((now + 900).to_string()));
    table.claim("exp true", "ClaimType", "exp", json!(true));
    table.claim("exp a list", "ClaimType", "exp", json!([now + 900]));
    table.claim("exp negative", "Time", "exp", json!(-1));
    table.claim("exp past the year 9999", "Time", "exp", json!(1e15));
    table.claim("exp in milliseconds", "Time", "exp", json!((now + 900) * 1000));
    table.claim("exp of 2^64", "Time", "exp", json!(u64::MAX));
    table.claim("exp in a year", "Lifetime", "exp", json!(now + 31_536_000));
    table.claim("exp of zero", "Expired", "exp", json!(0));
    table.claim("expired by the leeway and more", "Expired", "exp", json!(now - 60));
    table.claim("expired long ago", "Expired", "exp", json!(1_300_819_380));
    table.claim("nbf in a minute", "NotYet", "nbf", json!(now + 60));
    table.claim("nbf as text", "ClaimType", "nbf", json!("0"));
    table.claim("nbf negative", "Time", "nbf", json!(-5));
    table.claim("iat in a minute", "FromTheFuture", "iat", json!(now + 60));
    table.claim("iat as text", "ClaimType", "iat", json!(now.to_string()));
    table.claim("auth_time as text", "ClaimType", "auth_time", json!("now"));
    table.claim("auth_time negative", "Time", "auth_time", json!(-1.5));
    let good = table.good();
    let exp = format!("\"exp\":{}", now + 900);
    assert!(good.contains(&exp), "the claims are written without spaces");
    table.payload("exp of 1e400", "ClaimsJson", &good.replace(&exp, "\"exp\":1e400"));
    table.payload("exp NaN", "ClaimsJson", &good.replace(&exp, "\"exp\":NaN"));
    table.payload("exp with a zero in front", "ClaimsJson", &good.replace(&exp, "\"exp\":09999999999"));
}
