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
