//! Who calls, and whether they may: the bearer's token becomes the exchange's caller, and the route says who is let in.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{Plan, token_query};
use crate::{
    auth::{
        self, Checker, Claims, KeySet, Origin, Revocations, TokenError,
        revocation::{Bounds, Moment},
    },
    config::{Config, Revocation},
    exchange::{Code, Exchange, Reject, Tethers},
    proto::head::{Known, RequestHead, Span},
    shard::{Instant, Local, clock},
    telemetry::{
        metrics::{Counters, TokenCheck},
        spans::SpanKind,
    },
};

/// Who may use a route. Part of the plan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Anybody; a token is not looked at.
    Public,
    /// Callers with a valid token, and more.
    Caller {
        /// The caller has one of these at least; empty is any.
        roles: Box<[Box<str>]>,
        /// The caller has all of these.
        permissions: Box<[Box<str>]>,
        /// The parameter of the query that may hold the token instead of `Authorization`.
        token_query: Option<Box<str>>,
    },
}

impl Access {
    /// Any caller.
    pub(super) fn any_caller() -> Self {
        Self::Caller { roles: Box::default(), permissions: Box::default(), token_query: None }
    }

    pub(super) fn compile(route: &crate::config::Route) -> Self {
        let boxed = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        match route.access {
            crate::config::Access::Public => Self::Public,
            crate::config::Access::Authenticated => Self::Caller {
                roles: boxed(&route.roles),
                permissions: boxed(&route.permissions),
                token_query: route.token_query.as_deref().map(Into::into),
            },
        }
    }
}

/// What a caller is that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    /// Its session has ended, and it may see that end through: nothing else.
    Ended,
}

/// How tokens are checked, as the configuration says. Part of the plan.
#[derive(Debug)]
pub(super) struct Tokens {
    /// Checked tokens that a shard remembers.
    pub(super) cached_max: usize,
    /// Revocations that a shard holds, and for how long each matters.
    pub(super) revocations: Bounds,
    /// How old what is known of revocations may be; `None` when there is no log of them.
    pub(super) staleness_max: Option<Duration>,
    /// What happens after that.
    pub(super) revocation: Revocation,
}

impl Tokens {
    /// How far clocks may be apart.
    pub(super) const fn leeway(&self) -> Duration {
        self.revocations.leeway
    }

    pub(super) fn of(config: &Config) -> Self {
        Self {
            cached_max: config.auth.cache_entries,
            revocations: Bounds {
                kept: config.auth.revocations_kept(),
                leeway: config.auth.leeway,
                entries_max: config.auth.revocations_max,
            },
            staleness_max: config.accounts.enabled.then_some(config.revocation.max_staleness),
            revocation: config.revocation.clone(),
        }
    }
}

/// How a caller was let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) standing: Standing,
    /// Its token stood in the query, where it no longer is.
    pub(super) by_query: bool,
}

/// How callers are told from each other on a shard. One per shard.
#[derive(Debug)]
pub(super) struct Identity {
    state: Local<IdentityState>,
    tethers: Rc<Local<Tethers>>,
    began: Instant,
}

#[derive(Debug)]
struct IdentityState {
    keys: Arc<KeySet>,
    checker: Checker,
    revocations: Revocations,
    /// Everything revoked until then is known here.
    known_until: Option<Instant>,
}

impl Identity {
    pub(super) fn new(keys: Arc<KeySet>, tokens: &Tokens) -> Self {
        let state = IdentityState {
            keys,
            checker: Checker::new(tokens.cached_max),
            revocations: Revocations::new(tokens.revocations),
            known_until: None,
        };
        Self { state: Local::new(state), tethers: Rc::default(), began: clock::now() }
    }

    fn moment(&self) -> Moment {
        let now = clock::now();
        Moment { elapsed: now.since(self.began), unix: clock::to_unix(now) }
    }

    /// Lets the exchange in, with its caller, or refuses it. Where `ends` says that an end is asked for, one of our own
    /// tokens is let in that such an end has revoked: whoever was told that it may not be done asks again. Says whether it
    /// is one.
    pub(super) fn admit(
        &self,
        exchange: &mut Exchange,
        access: &Access,
        ends: bool,
        plan: &Plan,
    ) -> Result<Admitted, Reject> {
        let Access::Caller { roles, permissions, token_query } = access else {
            return Ok(Admitted { standing: Standing::Good, by_query: false });
        };
        let in_query = match token_query {
            Some(name) => token_query::take(&mut exchange.head, name)?,
            None => None,
        };
        let token = match in_query {
            Some(span) => of_query(&exchange.head, span)?,
            None => bearer(&exchange.head)?,
        };
        let is_guarded = !(roles.is_empty() && permissions.is_empty());
        // Whoever reads the clock for it pays for a span.
        let remembered = || self.state.with(|state| state.checker.counts().remembered);
        let recorded = exchange.is_recorded().then(|| (clock::now(), remembered()));
        let checked = self.state.with(|state| {
            let (keys, now) = (&state.keys, clock::unix_now());
            let (claims, standing) = match state.checker.check(keys, &state.revocations, token, now) {
                Err(TokenError::Revoked) if ends => {
                    let claims = state.checker.check_revoked(keys, token, now);
                    let own = claims.ok().filter(|claims| claims.origin == Origin::Own);
                    (own.ok_or(TokenError::Revoked).map_err(refused)?, Standing::Ended)
                }
                checked => (checked.map_err(refused)?, Standing::Good),
            };
            Ok::<_, Reject>((claims, standing, state.is_stale(plan.tokens.staleness_max, clock::turn())))
        });
        if let Some((began, before)) = recorded
            && before == remembered()
        {
            exchange.tell_part(SpanKind::TokenCheck, began, checked.is_err());
        }
        if let Some(token) = in_query {
            token_query::wipe(&mut exchange.head, token);
        }
        let (claims, standing, is_stale) = checked?;
        if is_stale {
            let is_refused = plan.tokens.revocation.closes(is_guarded);
            exchange.stale(is_refused);
            if is_refused {
                return Err(stale());
            }
        }
        let has_role = roles.is_empty() || roles.iter().any(|role| claims.roles.has(role));
        let lacks = permissions.iter().find(|permission| !plan.roles.permit(&claims, permission));
        let why = match lacks {
            _ if !has_role => {
                let has = claims.roles.as_list().unwrap_or("none");
                Some(format!("the route asks for one of the roles {}, and the caller has {has}", roles.join(",")))
            }
            Some(permission) => Some(format!("the caller lacks the permission {permission}")),
            None => None,
        };
        exchange.caller = Some(claims);
        let admitted = Admitted { standing, by_query: in_query.is_some() };
        why.map_or(Ok(admitted), |why| Err(Reject::caused(Code::Forbidden, why)))
    }

    /// Whose token this is, for what is not tied to a route's conditions.
    pub(super) fn check(&self, token: &[u8], plan: &Plan) -> Result<Rc<Claims>, Reject> {
        let (claims, is_stale) = self.state.with(|state| {
            let claims = state.checker.check(&state.keys, &state.revocations, token, clock::unix_now());
            Ok::<_, Reject>((claims.map_err(refused)?, state.is_stale(plan.tokens.staleness_max, clock::turn())))
        })?;
        if is_stale && plan.tokens.revocation.closes(false) {
            return Err(stale());
        }
        Ok(claims)
    }

    /// What is under way for sessions.
    pub(super) fn tethers(&self) -> &Rc<Local<Tethers>> {
        &self.tethers
    }

    /// Ties an exchange to its caller's session: an answer on its way ends with it, and a request without one is refused.
    pub(super) fn tie(&self, exchange: &mut Exchange) {
        exchange.tie(&self.tethers);
    }

    /// What was revoked lately. Exchanges under way that it ends are cut or refused; says how many.
    pub(super) fn revoke(&self, revocations: &[auth::Revocation]) -> usize {
        let now = self.moment();
        self.state.with(|state| revocations.iter().for_each(|revocation| state.revocations.apply(revocation, now)));
        Tethers::end(&self.tethers, revocations)
    }

    /// Everything revoked until then is known here.
    pub(super) fn known_until(&self, until: Instant) {
        self.state.with(|state| state.known_until = Some(until));
    }

    /// The issuer whose keys lack the one that a refused token named, now and then.
    pub(super) fn take_wanted_issuer(&self) -> Option<Arc<str>> {
        self.state.with(|state| state.checker.take_wanted())
    }

    /// Checks with these keys from now on.
    pub(super) fn adopt_keys(&self, keys: Arc<KeySet>) {
        drop(self.state.with(|state| std::mem::replace(&mut state.keys, keys)));
    }

    /// A new plan is in force.
    pub(super) fn adopt(&self, tokens: &Tokens) {
        self.state.with(|state| {
            state.checker.resize(tokens.cached_max);
            state.revocations.resize(tokens.revocations);
        });
    }

    /// Lets go what no longer matters.
    pub(super) fn sweep(&self) {
        let now = self.moment();
        self.state.with(|state| state.revocations.expire(now));
    }

    /// The public keys, as a JWK set.
    pub(super) fn key_set(&self) -> Vec<u8> {
        self.state.with(|state| state.keys.jwks_json().as_bytes().to_vec())
    }

    /// Adds what it holds to a shard's counters.
    pub(super) fn count(&self, tokens: &Tokens, counters: &mut Counters) {
        let size = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
        let (checks, remembered) = self.state.with(|state| (state.checker.counts(), state.checker.len()));
        counters.tokens[TokenCheck::Remembered.index()] = checks.remembered;
        counters.tokens[TokenCheck::Passed.index()] = checks.passed;
        counters.tokens[TokenCheck::Refused.index()] = checks.refused;
        counters.tokens_remembered = size(remembered);
        counters.revocations = size(self.state.with(|state| state.revocations.len()));
        let now = clock::now();
        let (age, is_stale) =
            self.state.with(|state| (state.age(now, self.began), state.is_stale(tokens.staleness_max, now)));
        let has_log = tokens.staleness_max.is_some();
        counters.revocation_age = if has_log { i64::try_from(age.as_secs()).unwrap_or(i64::MAX) } else { 0 };
        counters.revocation_stale_shards = i64::from(is_stale);
        counters.exchanges_tied = size(self.tethers.with(|tethers| tethers.len()));
    }
}

impl IdentityState {
    /// For how long nothing has been known of what was revoked: since the beginning, if nothing ever was.
    fn age(&self, now: Instant, began: Instant) -> Duration {
        now.since(self.known_until.unwrap_or(began))
    }

    /// Whether what was revoked lately is not known.
    fn is_stale(&self, staleness_max: Option<Duration>, now: Instant) -> bool {
        let is_old = |max| self.known_until.is_none_or(|until| now.since(until) > max);
        staleness_max.is_some_and(is_old)
    }
}

fn stale() -> Reject {
    let detail = "whether the session has ended is not known at the moment; try again shortly";
    Reject::because(Code::DependencyUnavailable, detail)
}

/// The token of `Authorization: Bearer` (RFC 6750 §2.1).
pub(super) fn bearer(head: &RequestHead) -> Result<&[u8], Reject> {
    let mut fields = head.fields.iter().filter(|field| field.known == Known::Authorization);
    let Some(field) = fields.next() else {
        return Err(Reject::caused(Code::TokenMissing, "there is no Authorization"));
    };
    if fields.next().is_some() {
        return Err(Reject::because(Code::TokenInvalid, "there is more than one Authorization field"));
    }
    let value = field.value.of(&head.bytes);
    let (scheme, token) = value.split_at_checked(b"Bearer ".len()).unwrap_or((value, &[]));
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Reject::caused(Code::TokenMissing, "Authorization is not of the scheme Bearer"));
    }
    // RFC 9110 §11.4: one space or more.
    Ok(token.trim_ascii_start())
}

/// The token that was taken out of the query; there is no other (RFC 6750 §2).
fn of_query(head: &RequestHead, token: Span) -> Result<&[u8], Reject> {
    if head.value(Known::Authorization).is_some() {
        return Err(Reject::because(Code::BadRequest, "there is a token in the query, and Authorization as well"));
    }
    match head.text(token) {
        [] => Err(Reject::caused(Code::TokenMissing, "the parameter of the query has no value")),
        token => Ok(token),
    }
}

fn refused(error: TokenError) -> Reject {
    let code = match error {
        TokenError::Invalid(_) => Code::TokenInvalid,
        TokenError::Expired => Code::TokenExpired,
        TokenError::Revoked => Code::TokenRevoked,
        TokenError::KeysAway => Code::DependencyUnavailable,
    };
    Reject::caused(code, error)
}
