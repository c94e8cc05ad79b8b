//! Keys of how services are spoken to: TLS.

use super::section::section;
use std::path::PathBuf;

section! {
    /// TLS to instances of an upstream that begin with `https://`: [tls.md](tls.md#to-services). What is in the files is taken
    /// when it changes, and by a reload; connections made before are used no more once what they are trusted by is another.
    UpstreamTls = Inside "upstreams.<name>.tls", per Process, by Reload {
        /// The PEM file of the authorities that their certificates may be of, and no others.
        ca_file: Option<PathBuf> = unset "the system's", e.g. "/etc/shardgate/tls/internal-ca.pem";
        /// The name, or the address, that their certificates are to be for, and that they are asked for (SNI).
        server_name: Option<String> as Text("name of a host, or an address") = unset "each instance's own host",
            e.g. "shop.internal";
        /// The PEM file of the certificate that they are shown where they ask for one, and behind it those that lead to an
        /// authority.
        cert: Option<PathBuf> = unset "they are shown none", e.g. "/etc/shardgate/tls/gateway.pem";
        /// The file of its key, as that of any other certificate.
        key: Option<PathBuf> = unset "`cert` is not given", e.g. "/etc/shardgate/tls/gateway-key.pem";
        /// Whether their certificates are looked at. With `false` anybody may take their place: for a try, never for tokens.
        verify: bool = true, e.g. false;
    }
}
