//! Who sockets speak for: tokens that come by a message, and what they permit.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::Sockets;
use crate::{
    auth::Claims,
    exchange::Tethers,
    gateway::{Plan, live::Live},
    hub::{Identity, SocketKey, code::Code, rules::Permits},
    shard::{Instant, clock},
};

/// Further ahead no timer is set.
const LIFETIME_MAX: Duration = Duration::from_hours(24 * 365);

impl Sockets {
    /// What a caller may do.
    pub(super) fn permits(&self, plan: &Plan, claims: &Claims) -> Permits {
        let permits = plan.hub.rules().permits(|role| claims.roles.has(role), |name| plan.roles.permit(claims, name));
        self.shelf.with(|shelf| shelf.share(permits))
    }

    /// What the hub knows of a caller.
    pub(super) fn identity(&self, live: &Live, claims: &Claims) -> Identity {
        Identity {
            user: Arc::from(&*claims.sub),
            session: claims.sid.as_deref().map(Arc::from),
            permits: self.permits(&live.plan, claims),
            expires: expires(claims.exp, live.plan.tokens.leeway()),
            expires_unix_s: claims.exp,
        }
    }

    /// Checks the token of an `auth` message.
    pub(super) fn authenticate(self: &Rc<Self>, key: SocketKey, id: Option<&str>, token: &str) {
        let Some(gateway) = self.gateway() else { return };
        let live = gateway.live();
        let checked = gateway.identity.check(token.as_bytes(), &live.plan);
        let now = clock::now();
        match checked {
            Ok(claims) => {
                let identity = self.identity(&live, &claims);
                let replaced = self.hub.with(|hub| {
                    let is_same = |user: &Arc<str>| **user == *claims.sub;
                    let socket = hub.socket(key)?;
                    // Somebody else's token changes nothing: the hub says no.
                    if socket.user().is_none_or(is_same) {
                        let tether = Tethers::tie(gateway.identity.tethers(), &claims, socket.handle.ender.clone());
                        tether.answer();
                        let claims = socket.handle.claims.replace(Rc::clone(&claims));
                        return Some((claims, socket.handle.tether.replace(tether)));
                    }
                    None
                });
                // Outside of the hub: the last of a session's ends may drop more than itself.
                drop(replaced);
                self.hub.with(|hub| hub.authenticated(now, key, id, identity));
            }
            Err(reject) => {
                gateway.ask_for_keys();
                self.hub.with(|hub| hub.auth_failed(now, key, id, Code::from(reject.code)));
            }
        }
    }
}

/// When a token counts no longer.
fn expires(exp_s: u64, leeway: Duration) -> Instant {
    let now = clock::now();
    let left = Duration::from_secs(exp_s).saturating_add(leeway).saturating_sub(clock::to_unix(now));
    now + left.min(LIFETIME_MAX)
}
