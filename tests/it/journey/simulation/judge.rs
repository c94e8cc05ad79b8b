//! Says what was wrong with what both sides got to read; knows nothing of how it came about.

use super::{
    plan::{Client, End, Exchange, Plan},
    players::{Got, Heard},
    stage::Outcome,
    wire::{Framing, Kind, Message, Tag, content, framing_of_request},
};

/// All that is wrong, in words.
pub(super) fn complaints(plan: &Plan, outcome: &Outcome) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, (client, got)) in plan.clients.iter().zip(&outcome.clients).enumerate() {
        complaints
            .extend(of_client(plan, client, got, outcome).into_iter().map(|what| format!("client {number}: {what}")));
    }
    for (number, heard) in outcome.backends.iter().enumerate() {
        complaints.extend(of_backend(plan, heard, outcome).into_iter().map(|what| format!("backend {number}: {what}")));
    }
    for exchange in plan.clients.iter().flat_map(|client| &client.exchanges) {
        let attempts = outcome.board.of(exchange.tag).attempts;
        if attempts > 1 && exchange.ask.method == "POST" {
            complaints.push(format!("{} is a POST and came {attempts} times", exchange.tag));
        }
    }
    complaints
}

// ---- what a backend may hear ----

fn of_backend(plan: &Plan, heard: &Heard, outcome: &Outcome) -> Vec<String> {
    let mut complaints: Vec<String> = heard.strange.iter().cloned().collect();
    for (number, (tag, request)) in heard.requests.iter().enumerate() {
        let exchange = plan.exchange(*tag).expect("strangers are not taken");
        if let Err(error) = check_request(exchange, request) {
            complaints.push(format!("{tag}: {error}"));
        }
        let is_last = number + 1 == heard.requests.len() && heard.strange.is_none();
        if !is_last && !request.is_whole {
            complaints.push(format!("{tag}: it is cut off, and there is more behind it"));
        }
        // The answer was out before the request was whole, and the gateway knew.
        let standing = outcome.board.of(*tag);
        if !is_last && standing.was_held && standing.attempts == 1 {
            complaints.push(format!("{tag}: it was answered before it was whole, and there is another one behind it"));
        }
    }
    complaints
}

fn check_request(exchange: &Exchange, request: &Message) -> Result<(), String> {
    let ask = &exchange.ask;
    let line = format!("{} {} HTTP/1.1", ask.method, ask.target);
    if request.head.first_line != line {
        return Err(format!("it reads {:?}, not {line:?}", request.head.first_line));
    }
    let framing = if ask.framing == Framing::Rest { Framing::Bare } else { ask.framing };
    if framing_of_request(&request.head) != framing {
        return Err(format!("it is framed otherwise: {:?}", request.head));
    }
    // A refused tunnel gets nothing, and who reads no content has taken none.
    let has_none = ask.upgrades && !exchange.is_tunnel() || exchange.answer.end == End::Unread;
    let sent = content(Kind::Request, exchange.tag, if has_none { 0 } else { ask.content_bytes });
    check_content(&sent, &request.content, request.is_whole && !exchange.is_tunnel())
}

fn check_content(sent: &[u8], got: &[u8], is_whole: bool) -> Result<(), String> {
    if let Some(at) = got.iter().zip(sent).position(|(got, sent)| got != sent) {
        return Err(format!("its content differs at {at}: {:?}", excerpt(got, at)));
    }
    if got.len() > sent.len() || is_whole && got.len() < sent.len() {
        return Err(format!("its content is {} bytes, not {}", got.len(), sent.len()));
    }
    Ok(())
}

fn excerpt(bytes: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&bytes[at.saturating_sub(20)..bytes.len().min(at + 80)]).into_owned()
}

// ---- what a client may get ----

fn of_client(plan: &Plan, client: &Client, got: &Got, outcome: &Outcome) -> Vec<String> {
    let mut complaints: Vec<String> = got.strange.iter().cloned().collect();
    // Nothing need come to who has left, as one does from a tunnel that has to be asked for twice.
    let leaves =
        |exchange: &Exchange| exchange.leaves || exchange.is_tunnel() && outcome.board.of(exchange.tag).attempts > 1;
    let mut may_be_silent = client.exchanges.iter().any(leaves);
    for (number, (exchange, answers)) in client.exchanges.iter().zip(&got.answers).enumerate() {
        let mut complain = |what: String| complaints.push(format!("{}: {what}", exchange.tag));
        let (last, interim) = match answers.split_last() {
            Some((last, interim)) if last.status() >= 200 || last.status() == 101 => (Some(last), interim),
            _ => (None, &answers[..]),
        };
        for answer in interim {
            check_interim(exchange, answer).unwrap_or_else(&mut complain);
        }
        match last {
            None if may_be_silent => {}
            None => complain("it got no answer".to_owned()),
            Some(answer) => {
                // A connection that breaks takes answers with it that the client has not read yet.
                let may_break = client.exchanges[number..].iter().any(|exchange| may_be_torn(exchange, outcome));
                let may_end = may_be_silent || may_break;
                check_answer(plan, exchange, answer, may_end).unwrap_or_else(&mut complain);
            }
        }
        // Behind the last answer of a connection there is none.
        may_be_silent |= last.is_none_or(|answer| !answer.is_whole || answer.closes());
    }
    complaints
}

fn check_interim(exchange: &Exchange, answer: &Message) -> Result<(), String> {
    let whose = answer.head.field("x-tag");
    if exchange.ask.is_http10 || whose.map_or(answer.status() != 100, |whose| !is_of(exchange.tag, whose)) {
        return Err(format!("it got an interim answer that is not its own: {:?}", answer.head));
    }
    Ok(())
}

fn check_answer(plan: &Plan, exchange: &Exchange, answer: &Message, may_end: bool) -> Result<(), String> {
    let Some(whose) = answer.head.field("x-tag") else { return check_refusal(plan, exchange, answer) };
    if !is_of(exchange.tag, whose) {
        return Err(format!("it got the answer to {whose}"));
    }
    if answer.status() != exchange.answer.status {
        return Err(format!("its answer has status {}, not {}", answer.status(), exchange.answer.status));
    }
    let sent = content(Kind::Answer, exchange.tag, exchange.answer.content_bytes);
    check_content(&sent, &answer.content, answer.is_whole && !(exchange.is_tunnel() && may_end))?;
    if !answer.is_whole && !may_end {
        return Err(format!("its answer is cut off after {} bytes", answer.content.len()));
    }
    Ok(())
}

/// The gateway's own answers: that no backend could be reached is all that it has to say here.
fn check_refusal(plan: &Plan, exchange: &Exchange, answer: &Message) -> Result<(), String> {
    let document = String::from_utf8_lossy(&answer.content).into_owned();
    let is_told = answer.is_whole && exchange.ask.method != "HEAD";
    let is_known = !is_told || document.contains("\"code\":\"upstream_unreachable\"");
    if answer.status() != 502 || answer.head.field("content-type") != Some("application/problem+json") || !is_known {
        return Err(format!("it got {:?} {document}", answer.head));
    }
    if may_be_unreachable(plan, exchange) { Ok(()) } else { Err(format!("no backend failed it: {document}")) }
}

fn is_of(tag: Tag, whose: &str) -> bool {
    Tag::parse(whose) == Some(tag)
}

/// Whether its backend broke its answer off: as planned, or since what it had not read of the request when it closed made a
/// reset of that.
fn may_be_torn(exchange: &Exchange, outcome: &Outcome) -> bool {
    let is_first = outcome.board.of(exchange.tag).attempts == 1;
    let breaks = match exchange.answer.end {
        End::Torn => true,
        End::Announced | End::Silent => exchange.answer.is_early,
        End::Keep | End::Junk | End::Late(_) | End::Unread => false,
    };
    exchange.is_tunnel() || is_first && breaks
}

/// Whether a backend closed before it answered: as planned, or since it closed a connection that it had kept until then,
/// and the request was none to send again. Behind a refused switch it may close as it likes: nobody comes there.
fn may_be_unreachable(plan: &Plan, exchange: &Exchange) -> bool {
    let is_once = exchange.ask.method == "POST" || exchange.ask.content_bytes > 0;
    let others = plan.clients.iter().flat_map(|client| &client.exchanges).filter(|other| !other.ask.upgrades);
    let mut ends = others.map(|other| other.answer.end);
    exchange.answer.end == End::Torn || is_once && ends.any(|end| matches!(end, End::Silent | End::Torn))
}
