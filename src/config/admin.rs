//! The operator's listener: who may make changes there, by which names it goes, and where it may listen.

use super::keys::section::FromFields as _;
use super::keys::{AdminToken, TlsCertificate};
use super::names::is_plain;
use super::raw::quoted;
use super::read::Fields;
use super::report::Report;
use super::{Admin, Config, ListenerKind};

/// Shorter tokens can be guessed.
const ADMIN_TOKEN_BYTES_MIN: usize = 16;
/// And longer ones fit no field of a request.
pub const ADMIN_TOKEN_BYTES_MAX: usize = 1024;

const TOKENS_MAX: usize = 64;
const HOSTS_MAX: usize = 64;

/// Reads the sections inside `[admin]`, and checks all of it.
pub(super) fn read_admin(admin: &mut Admin, fields: &Fields<'_>, report: &mut Report) {
    for fields in Fields::listed(AdminToken::SECTION, fields.node("tokens"), TOKENS_MAX, report) {
        let token = AdminToken::from_fields(&fields, report);
        check_token(&token, &admin.tokens, &fields, report);
        admin.tokens.push(token);
    }
    let is_host = |host: &&String| {
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        (1..=253).contains(&host.len()) && host.bytes().all(is_host_byte)
    };
    let wrong = admin.hosts.iter().filter(|host| !is_host(host));
    fields.wrong_values(report, "hosts", wrong, "write the name of a host without a port, like \"gateway.internal\"");
    if admin.hosts.len() > HOSTS_MAX {
        fields.wrong(report, "hosts", format_args!("has {} names", admin.hosts.len()), "there are at most 64");
    }
    if admin.enabled && !admin.is_on_loopback() && fields.is_sound("address", report) {
        if admin.tokens.is_empty() {
            let right = "others can reach that address, so operators need tokens there: write [[admin.tokens]], or bind a \
                         loopback address like \"127.0.0.1\"";
            fields.wrong(report, "address", format_args!("is \"{}\"", admin.address), right);
        } else if admin.kind == ListenerKind::Plain {
            report.warn(
                &fields.place_of("address"),
                "admin.address can be reached by others, and tokens go there in clear text; admin.kind = \"tls\", or a \
                 loopback address behind whoever ends TLS, keeps them to yourself",
            );
        }
    }
}

/// Checks what is shown over TLS there, once it is known which certificates there are.
pub(super) fn check_admin_tls(config: &Config, fields: &Fields<'_>, report: &mut Report) {
    let Admin { enabled, kind, cert, key, .. } = &config.admin;
    if *kind == ListenerKind::Redirect {
        return fields.wrong(
            report,
            "kind",
            "is \"redirect\"",
            "operators are led nowhere; write \"plain\" or \"tls\"",
        );
    }
    let of_one = match (cert, key) {
        (Some(_), None) => Some(["cert", "key"]),
        (None, Some(_)) => Some(["key", "cert"]),
        (Some(_), Some(_)) | (None, None) => None,
    };
    if let Some([given, missing]) = of_one {
        let right = format!("give admin.{missing} too, or neither");
        fields.wrong(report, given, "is given alone", &right);
    } else if cert.is_some() && *kind == ListenerKind::Plain {
        report.warn(&fields.place_of("cert"), "admin.cert is shown to nobody, as admin.kind is \"plain\"");
    } else if *enabled && *kind == ListenerKind::Tls && cert.is_none() && config.tls.certificates.is_empty() {
        let right = "give admin.cert and admin.key, or cert and key of one as [[tls.certificates]]";
        fields.wrong(report, "kind", "is \"tls\", and there is no certificate", right);
    }
}

fn check_token(token: &AdminToken, others: &[AdminToken], fields: &Fields<'_>, report: &mut Report) {
    if fields.is_text("name") {
        if !is_plain(&token.name) {
            let right = "it is up to 64 of A-Z, a-z, 0-9, ., _ and -";
            fields.wrong(report, "name", format_args!("is {}", quoted(&token.name)), right);
        }
        if others.iter().any(|other| other.name == token.name) {
            let what = format_args!("is {}, as that of another token", quoted(&token.name));
            fields.wrong(report, "name", what, "give each token a name of its own: the log tells who did what by it");
        }
    }
    let path = &fields.path;
    let [file, secret] = ["file", "secret"].map(|key| fields.node(key).is_some());
    if file == secret {
        let what = if file { "has both file and secret" } else { "has neither file nor secret" };
        let right = "give the file that holds the token, or the token itself as secret";
        report.push(fields.place(), format!("{path} {what}"), right);
    }
    if let Some(wrong) = token.secret.as_ref().and_then(|secret| admin_token_mistake(secret.reveal().as_bytes())) {
        fields.wrong(report, "secret", wrong, ADMIN_TOKEN_FORM);
    }
}

/// How a token of an operator looks.
pub const ADMIN_TOKEN_FORM: &str =
    "it has 16 to 1024 visible ASCII characters, by chance: `openssl rand -base64 32` makes one";

/// What is wrong with a token.
pub fn admin_token_mistake(token: &[u8]) -> Option<String> {
    if !(ADMIN_TOKEN_BYTES_MIN..=ADMIN_TOKEN_BYTES_MAX).contains(&token.len()) {
        return Some(format!("has {} bytes", token.len()));
    }
    let is_visible = token.iter().all(u8::is_ascii_graphic);
    (!is_visible).then(|| "has spaces, or characters that are not ASCII".to_owned())
}

impl Admin {
    /// Whether only this machine reaches it.
    pub fn is_on_loopback(&self) -> bool {
        self.address.to_canonical().is_loopback()
    }

    /// Whether it is there and speaks TLS.
    pub fn speaks_tls(&self) -> bool {
        self.enabled && self.kind == ListenerKind::Tls
    }

    /// A certificate of its own, if it has one.
    pub fn certificate(&self) -> Option<TlsCertificate> {
        Some(TlsCertificate { cert: self.cert.clone()?, key: self.key.clone()? })
    }
}
