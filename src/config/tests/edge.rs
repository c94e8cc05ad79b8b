//! Listeners at the edge: who tells whose a connection is, where plain HTTP is sent, and what browsers are told to keep.

use expect_test::expect;

use super::check;

#[test]
fn a_proxy_header_needs_somebody_who_is_trusted() {
    check(
        "[listener]\nproxy_protocol = \"required\"\n[[listeners]]\nport = 1\nkind = \"plain\"\nproxy_protocol = \"on\"\n\
         [[listeners]]\nport = 2\nkind = \"plain\"\nproxy_protocol = \"required\"\n",
        &expect![[r#"
            shardgate.toml:2: listener.proxy_protocol is "required", and nobody is trusted to send the header; name the balancers that connect to it as trust.proxies
            shardgate.toml:6: listeners[0].proxy_protocol is "on"; it is one of "off", "required"
            shardgate.toml:10: listeners[1].proxy_protocol is "required", and nobody is trusted to send the header; name the balancers that connect to it as trust.proxies"#]],
    );
}

#[test]
fn a_redirect_leads_somewhere() {
    check(
        "[listener]\nkind = \"redirect\"\nhttps_port = 0\n[[listeners]]\nport = 1\nkind = \"plain\"\nhttps_port = 8443\n",
        &expect![[r#"
            shardgate.toml:3: listener.https_port is 0; ports go from 1 to 65535
            shardgate.toml:7: listeners[0].https_port leads nowhere; it is for kind = "redirect"; leave it out, or give listeners[0] that kind
            shardgate.toml: listener.kind is "redirect", and neither a route nor a certificate names a host; give routes their hosts, or a certificate as [[tls.certificates]]"#]],
    );
    let routes = "[upstreams.a]\ninstances = [\"h:1\"]\n[[routes]]\nhosts = [\"shop.example\"]\npath = \"/\"\nupstream = \"a\"\n";
    check(&format!("[listener]\nkind = \"redirect\"\nhttps_port = 8443\n{routes}"), &expect![[""]]);
}

#[test]
fn what_browsers_keep_to_is_said_whole() {
    check(
        "[tls]\nhsts_include_subdomains = true\n",
        &expect![
            "shardgate.toml:2: tls.hsts_include_subdomains is true, and browsers are told nothing; give tls.hsts_max_age too"
        ],
    );
    check(
        "[tls]\nhsts_max_age = \"30d\"\nhsts_include_subdomains = true\nhsts_preload = true\n",
        &expect![[
            r#"shardgate.toml:4: tls.hsts_preload is true, and the rest does not do for it; the list takes hosts with hsts_max_age = "365d" or more and hsts_include_subdomains = true"#
        ]],
    );
    check(
        "[tls]\nhsts_max_age = \"365d\"\nhsts_preload = true\n",
        &expect![[
            r#"shardgate.toml:3: tls.hsts_preload is true, and the rest does not do for it; the list takes hosts with hsts_max_age = "365d" or more and hsts_include_subdomains = true"#
        ]],
    );
    check("[tls]\nhsts_max_age = \"0s\"\n", &expect![[""]]);
}
