//! Who may call from a browser, and with what: CORS as the Fetch standard has it. Answering is for the gateway.

use super::keys::section::FromFields as _;
use super::names::is_token;
use super::origin::OriginPattern;
use super::raw::quoted;
use super::read::Fields;
use super::report::Report;
use super::{Cors, Route, RouteCors};

impl RouteCors {
    /// What holds for the route.
    pub fn over(&self, cors: &Cors) -> Cors {
        let Self { origins, methods, headers, exposed, max_age, credentials, private_network } = self.clone();
        Cors {
            origins: origins.unwrap_or_else(|| cors.origins.clone()),
            methods: methods.unwrap_or_else(|| cors.methods.clone()),
            headers: headers.unwrap_or_else(|| cors.headers.clone()),
            exposed: exposed.unwrap_or_else(|| cors.exposed.clone()),
            max_age: max_age.unwrap_or(cors.max_age),
            credentials: credentials.unwrap_or(cors.credentials),
            private_network: private_network.unwrap_or(cors.private_network),
        }
    }
}

/// Reads `[routes.cors]`, which holds together with `[cors]`.
pub(super) fn read_route_cors(route: &mut Route, fields: &Fields<'_>, cors: &Cors, report: &mut Report) {
    let (own, fields) = RouteCors::inside(fields, "cors", report);
    if own != RouteCors::default() {
        check_cors(&own.over(cors), &fields, report);
    }
    route.cors = own;
}

/// What `[cors]`, or a route over it, says.
pub(super) fn check_cors(cors: &Cors, fields: &Fields<'_>, report: &mut Report) {
    let path = &fields.path;
    let has_star = |list: &[String]| list.iter().any(|name| name == "*");
    if cors.credentials && cors.origins.contains(&OriginPattern::Any) {
        let what = format_args!("is true, and {path}.origins has \"*\"");
        fields.wrong(report, "credentials", what, "every site could act as the user; name the origins");
    }
    if cors.credentials && has_star(&cors.exposed) {
        let what = format!("{path}.credentials is true, and {path}.exposed has \"*\"");
        report.push(fields.place_of("exposed"), what, "browsers take that star literally then; name the fields");
    }
    for (key, list) in [("methods", &cors.methods), ("headers", &cors.headers), ("exposed", &cors.exposed)] {
        let wrong = list.iter().filter(|name| !is_token(name) || name.len() > 128);
        fields.wrong_values(report, key, wrong, "it is one word or \"*\"");
        if list.len() > 1 && has_star(list) {
            fields.wrong(report, key, "has \"*\" and more", "the star stands for all");
        }
    }
    for method in cors.methods.iter().filter(|method| method.bytes().any(|byte| byte.is_ascii_lowercase())) {
        let right = format!("methods are told apart by case; write {}", quoted(&method.to_ascii_uppercase()));
        fields.wrong_values(report, "methods", [method], &right);
    }
    if cors.origins.len() > 1 && cors.origins.contains(&OriginPattern::Any) {
        fields.wrong(report, "origins", "has \"*\" and more", "the star stands for all");
    }
    if cors.credentials && cors.origins.contains(&OriginPattern::Null) {
        report
            .warn(&fields.place_of("origins"), &format!("{path} allows \"null\" with credentials: any site can be it"));
    }
}
