//! The judge sees each wrong that there is: histories made up for it, each with one; and none where there is none.

use super::history::{Event, Fault, History, Kind, Ms, Target, What};

const SID: &str = "s_one";

fn sid() -> String {
    SID.to_owned()
}

/// Sent and told at this time, at this instance.
fn at(time: Ms, instance: usize, what: What) -> Event {
    Event { user: 7, instance, sent: time, told: time, what }
}

fn began() -> Event {
    at(100, 0, What::Began { sid: sid() })
}

/// Asked for at 1 s and told at 2 s, by the first instance.
fn ended() -> [Event; 3] {
    let told = Event { sent: 1_000, ..at(2_000, 0, What::EndTold { sid: sid() }) };
    [began(), at(1_000, 0, What::EndAsked { sid: sid() }), told]
}

fn admitted(time: Ms, instance: usize, asks_for_role: bool) -> Event {
    at(time, instance, What::Admitted { sid: sid(), asks_for_role })
}

fn listed(time: Ms, sids: &[&str]) -> Event {
    let sessions = sids.iter().map(|sid| ((*sid).to_owned(), format!("agent of {sid}"))).collect();
    at(time, 1, What::Listed { sessions })
}

fn not_renewed(since: Ms, time: Ms) -> Event {
    at(time, 1, What::NotRenewed { sid: sid(), code: "refresh_reused".to_owned(), since })
}

fn silence(sent: Ms, told: Ms, is_closed: bool) -> Event {
    Event { sent, ..at(told, 1, What::Silence { is_closed }) }
}

fn fault(target: Target, from: Ms, till: Ms) -> Fault {
    Fault { target, from, till, what: "harmed" }
}

#[track_caller]
fn expect(faults: &[Fault], events: impl IntoIterator<Item = Event>, kinds: &[Kind]) {
    let mut history = History { events: events.into_iter().collect(), faults: faults.to_vec() };
    let complaints = history.complaints();
    let found: Vec<Kind> = complaints.iter().map(|complaint| complaint.kind).collect();
    assert_eq!(found, kinds, "{complaints:?}");
}

fn after_its_end(event: Event) -> impl Iterator<Item = Event> {
    ended().into_iter().chain([event])
}

#[test]
fn the_judge_sees_an_end_that_is_forgotten() {
    let (away, frozen) = (fault(Target::Redis, 500, 8_000), fault(Target::Instance(1), 500, 8_000));
    // By the instance that told it: at once, unless something was wrong.
    expect(&[], after_its_end(admitted(2_001, 0, false)), &[Kind::Forgotten]);
    expect(&[away], after_its_end(admitted(2_001, 0, false)), &[]);
    expect(&[frozen], after_its_end(admitted(2_001, 0, false)), &[Kind::Forgotten]);
    // By the other: when it had the time to know.
    expect(&[], after_its_end(admitted(6_999, 1, false)), &[]);
    expect(&[], after_its_end(admitted(7_001, 1, false)), &[Kind::Forgotten]);
    for fault in [away, frozen] {
        expect(&[fault], after_its_end(admitted(12_999, 1, false)), &[]);
        expect(&[fault], after_its_end(admitted(13_001, 1, false)), &[Kind::Forgotten]);
        // Where a role is asked for, whatever is wrong.
        expect(&[fault], after_its_end(admitted(3_999, 1, true)), &[]);
        expect(&[fault], after_its_end(admitted(4_001, 1, true)), &[Kind::Forgotten]);
    }
    // What was sent before is nobody's mistake.
    let under_way = Event { sent: 1_999, ..admitted(9_000, 0, true) };
    expect(&[], after_its_end(under_way), &[]);
}

#[test]
fn the_judge_sees_a_session_that_is_good_again() {
    let renewed = |time| at(time, 1, What::Renewed { sid: sid() });
    let away = fault(Target::Redis, 500, 90_000);
    expect(&[], [began(), renewed(500)], &[]);
    for faults in [&[][..], &[away]] {
        expect(faults, after_its_end(renewed(2_001)), &[Kind::Forgotten]);
        expect(faults, after_its_end(renewed(60_000)), &[Kind::Forgotten]);
    }
    // Nobody was told, and the log says so.
    let logged = at(1_500, 0, What::EndLogged { sid: sid() });
    let asked = at(1_000, 0, What::EndAsked { sid: sid() });
    let events = |time| [began(), asked.clone(), logged.clone(), renewed(time)];
    expect(&[], events(6_499), &[]);
    expect(&[], events(6_501), &[Kind::Forgotten]);
    expect(&[away], events(60_000), &[]);
}

#[test]
fn the_judge_sees_an_end_that_is_half_done() {
    let denied = What::EndDenied { sid: sid(), code: "token_revoked".to_owned() };
    expect(&[], [began(), at(1_000, 0, What::EndAsked { sid: sid() }), at(2_000, 0, denied)], &[Kind::HalfDone]);
    expect(&[], after_its_end(at(90_000, 0, What::HalfDone { sid: sid() })), &[Kind::HalfDone]);
    expect(&[], after_its_end(listed(2_001, &[SID])), &[Kind::Disagreement]);
    expect(&[], after_its_end(listed(2_001, &[])), &[]);
    let logged = at(1_500, 0, What::EndLogged { sid: sid() });
    let asked = at(1_000, 0, What::EndAsked { sid: sid() });
    expect(&[], [began(), asked.clone(), logged.clone(), listed(6_499, &[SID])], &[]);
    expect(&[], [began(), asked, logged, listed(6_501, &[SID])], &[Kind::Disagreement]);
}

#[test]
fn the_judge_sees_an_honest_user_that_is_logged_out() {
    expect(&[], [began(), not_renewed(1_000, 10_999)], &[Kind::LoggedOut]);
    expect(&[], [began(), not_renewed(1_000, 11_001)], &[]);
    expect(&[], after_its_end(not_renewed(3_000, 3_000)), &[]);
    let revoked = |time| at(time, 0, What::Revoked { sid: sid() });
    expect(&[], [began(), revoked(500)], &[Kind::LoggedOut]);
    expect(&[], after_its_end(revoked(3_000)), &[]);
    // An end that is asked for later excuses nothing.
    expect(&[], [began(), revoked(500), at(1_000, 0, What::EndAsked { sid: sid() })], &[Kind::LoggedOut]);
}

#[test]
fn the_judge_sees_lists_that_lack_sessions_or_make_them_up() {
    expect(&[], [began(), listed(500, &[SID])], &[]);
    expect(&[], [began(), listed(500, &[])], &[Kind::Disagreement]);
    expect(&[], [began(), listed(500, &[SID, "s_two"])], &[Kind::Disagreement]);
    let perhaps = at(200, 0, What::BeganPerhaps { agent: "agent of s_two".to_owned() });
    expect(&[], [began(), perhaps, listed(500, &[SID, "s_two"])], &[]);
    let other = Event { user: 8, ..listed(500, &[]) };
    expect(&[], [began(), other], &[]);
}

#[test]
fn the_judge_sees_who_is_not_answered() {
    let (frozen, other) = (fault(Target::Instance(1), 500, 3_000), fault(Target::Instance(0), 500, 3_000));
    expect(&[], [silence(1_000, 6_999, false)], &[]);
    expect(&[], [silence(1_000, 7_000, false)], &[Kind::Unanswered]);
    expect(&[], [silence(1_000, 1_001, true)], &[Kind::Unanswered]);
    expect(&[frozen], [silence(1_000, 7_000, false), silence(1_000, 1_001, true)], &[]);
    expect(&[other], [silence(1_000, 1_001, true)], &[Kind::Unanswered]);
    expect(&[fault(Target::Redis, 500, 9_000)], [silence(1_000, 7_000, false)], &[Kind::Unanswered]);
    for what in [What::Odd { answer: "500".to_owned() }, What::Stuck { answer: "a list".to_owned() }] {
        expect(&[frozen], [at(1_000, 1, what)], &[Kind::Unanswered]);
    }
}
