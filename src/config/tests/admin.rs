//! The operator's listener: its tokens and names, and where it may be bound.

use super::*;
use expect_test::expect;

#[test]
fn tokens_have_names_and_are_no_guess() {
    check(
        "[admin]\nhosts = [\"gate.internal\", \"gate:3001\", \"http://gate\", \"\"]\n\
         [[admin.tokens]]\nname = \"ann\"\nfile = \"t\"\n\
         [[admin.tokens]]\nname = \"ann\"\nsecret = \"0123456789abcdef\"\n\
         [[admin.tokens]]\nname = \"ben jr\"\nfile = \"t\"\nsecret = \"0123456789abcdef\"\n\
         [[admin.tokens]]\nname = \"cy\"\n\
         [[admin.tokens]]\nname = \"dan\"\nsecret = \"short\"\n\
         [[admin.tokens]]\nname = \"eve\"\nsecret = \"long, and has spaces\"\n\
         [[admin.tokens]]\nsecret = \"0123456789abcdef\"\n",
        &expect![[r#"
            shardgate.toml:2: admin.hosts has "gate:3001"; write the name of a host without a port, like "gateway.internal"
            shardgate.toml:2: admin.hosts has "http://gate"; write the name of a host without a port, like "gateway.internal"
            shardgate.toml:2: admin.hosts has ""; write the name of a host without a port, like "gateway.internal"
            shardgate.toml:7: admin.tokens[1].name is "ann", as that of another token; give each token a name of its own: the log tells who did what by it
            shardgate.toml:9: admin.tokens[2] has both file and secret; give the file that holds the token, or the token itself as secret
            shardgate.toml:10: admin.tokens[2].name is "ben jr"; it is up to 64 of A-Z, a-z, 0-9, ., _ and -
            shardgate.toml:13: admin.tokens[3] has neither file nor secret; give the file that holds the token, or the token itself as secret
            shardgate.toml:17: admin.tokens[4].secret has 5 bytes; it has 16 to 1024 visible ASCII characters, by chance: `openssl rand -base64 32` makes one
            shardgate.toml:20: admin.tokens[5].secret has spaces, or characters that are not ASCII; it has 16 to 1024 visible ASCII characters, by chance: `openssl rand -base64 32` makes one
            shardgate.toml:21: admin.tokens[6].name is missing; it is text: up to 64 of A-Z, a-z, 0-9, ".", "_" and "-""#]],
    );
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    check(
        "[admin]\naddress = \"0.0.0.0\"\n",
        &expect![[
            r#"shardgate.toml:2: admin.address is "0.0.0.0"; others can reach that address, so operators need tokens there: write [[admin.tokens]], or bind a loopback address like "127.0.0.1""#
        ]],
    );
    check(
        "[admin]\naddress = \"::ffff:10.0.0.1\"\n",
        &expect![[
            r#"shardgate.toml:2: admin.address is "::ffff:10.0.0.1"; others can reach that address, so operators need tokens there: write [[admin.tokens]], or bind a loopback address like "127.0.0.1""#
        ]],
    );
    check("[admin]\naddress = \"::ffff:127.0.0.1\"\n", &expect![[r#""#]]);
    let config =
        good("[admin]\naddress = \"0.0.0.0\"\n[[admin.tokens]]\nname = \"ann\"\nsecret = \"0123456789abcdef\"\n");
    expect![[r#"shardgate.toml:2: admin.address can be reached by others, and tokens go there in clear text; admin.kind = "tls", or a loopback address behind whoever ends TLS, keeps them to yourself"#]].assert_eq(&config.warnings.join("\n"));
    assert!(!config.admin.is_on_loopback());
    assert!(!config.to_toml().contains("0123456789abcdef"), "it is a secret");
}

#[test]
fn a_certificate_for_operators_has_a_key_and_is_shown() {
    check(
        "[admin]\nkind = \"tls\"\n",
        &expect![[
            r#"shardgate.toml:2: admin.kind is "tls", and there is no certificate; give admin.cert and admin.key, or cert and key of one as [[tls.certificates]]"#
        ]],
    );
    check(
        "[admin]\nkind = \"redirect\"\n",
        &expect![[r#"shardgate.toml:2: admin.kind is "redirect"; operators are led nowhere; write "plain" or "tls""#]],
    );
    check(
        "[admin]\ncert = \"c.pem\"\n",
        &expect!["shardgate.toml:2: admin.cert is given alone; give admin.key too, or neither"],
    );
    check(
        "[admin]\nkind = \"tls\"\nkey = \"k.pem\"\n",
        &expect!["shardgate.toml:3: admin.key is given alone; give admin.cert too, or neither"],
    );
    let pair = "cert = \"c.pem\"\nkey = \"k.pem\"\n";
    let config = good(&format!("[admin]\n{pair}"));
    expect![[r#"shardgate.toml:2: admin.cert is shown to nobody, as admin.kind is "plain""#]]
        .assert_eq(&config.warnings.join("\n"));
    let shared = "[admin]\nkind = \"tls\"\n[[tls.certificates]]\n";
    let tokens = "[[admin.tokens]]\nname = \"ann\"\nsecret = \"0123456789abcdef\"\n";
    for text in [
        format!("{shared}{pair}"),
        format!("[admin]\nkind = \"tls\"\n{pair}"),
        "[admin]\nkind = \"tls\"\nenabled = false\n".to_owned(),
        // Tokens go there in no clear text.
        format!("[admin]\nkind = \"tls\"\naddress = \"0.0.0.0\"\n{pair}{tokens}"),
    ] {
        assert_eq!(good(&text).warnings, Vec::<String>::new(), "{text}");
    }
}
