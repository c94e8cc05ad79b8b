//! What a client gets of interim answers, and what those that it does not take cost.

use std::{future::poll_fn, net::TcpListener, rc::Rc};

use tokio::io::AsyncReadExt;

use super::*;
use crate::{
    net::{AnswerBody, Cut, Response, Stream, outbound, records},
    proto::head::{Known, Version},
    shard::{TcpStream, testing},
};

/// The body of an answer that has none.
struct Empty;

impl AnswerBody for Empty {
    fn poll_fill(&mut self, _: &mut Context<'_>, _: &mut impl RequestBody) -> Poll<Result<bool, Cut>> {
        Poll::Ready(Ok(false))
    }

    fn chunk(&self) -> &[u8] {
        &[]
    }

    fn consume(&mut self, _: usize) {}

    fn trailers(&self) -> &[u8] {
        &[]
    }

    fn poll_meanwhile(&mut self, _: &mut Context<'_>, _: &mut impl RequestBody) -> Poll<Cut> {
        Poll::Pending
    }

    fn write_timeout(&self) -> Option<Duration> {
        None
    }

    fn abandon(self) {}
}

/// What a client that waits for `100 Continue` gets to read when so much of it was written before the answer began.
async fn answered_after(written: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let due = clock::now() + Duration::from_secs(30);
    let address = listener.local_addr().expect("an address");
    let mut client = TcpStream::connect(address, due).await.expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    let io = Rc::new(Io::new(Stream::Plain(TcpStream::from_fd(server.into()).expect("registered"))));
    let mut inbound = Inbound::new(Rc::clone(&io));
    inbound.framing = Framing::Length(10);
    inbound.reader.begin_body(inbound.framing);
    inbound.awaits_continue = written == 0;
    inbound.interim = if written == 0 { Vec::new() } else { CONTINUE[written..].to_vec() };
    let head = ResponseHead::new(417, buffers::take(), buffers::take_fields());
    let response = Response { head, body: Empty, request: Http1Body::new(&mut inbound) };
    let mut answer = outbound::Answer::new(response, false, Version::Http11, true, Duration::from_secs(30));
    assert_eq!(answer.send(&io).await.cut, None);
    drop(answer);
    assert!(inbound.interim.is_empty() && !inbound.awaits_continue, "nothing of it may follow the answer");
    drop((inbound, io));
    let mut heard = String::new();
    client.read_to_string(&mut heard).await.expect("read to the end");
    heard
}

#[test]
fn a_client_that_does_not_read_costs_a_buffer_and_a_head() {
    testing::on_both_drivers(|| async {
        const HEAD: usize = 4096;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let due = clock::now() + Duration::from_secs(30);
        let client = TcpStream::connect(listener.local_addr().expect("an address"), due).await.expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let io = Rc::new(Io::new(Stream::Plain(TcpStream::from_fd(server.into()).expect("registered"))));
        let mut inbound = Inbound::new(io);
        let mut hint = ResponseHead::new(103, buffers::take(), buffers::take_fields());
        hint.push(Known::Other, b"Link", &[b'x'; HEAD]);
        // More than the kernel takes for a client that reads nothing.
        poll_fn(|cx| {
            for _ in 0..10_000 {
                Http1Body::new(&mut inbound).tell(cx, &hint);
            }
            Poll::Ready(())
        })
        .await;
        let held = inbound.interim.len();
        let most = buffers::BUFFER_BYTES + HEAD + 64;
        assert!((buffers::BUFFER_BYTES..most).contains(&held), "{held} bytes");
        drop(client);
    });
}

#[test]
fn a_torn_interim_answer_is_completed_before_the_answer() {
    testing::on_both_drivers(|| async {
        let torn = answered_after(9).await;
        assert!(torn.starts_with("100 Continue\r\n\r\nHTTP/1.1 417 "), "{torn}");
        for written in [0, CONTINUE.len()] {
            let whole = answered_after(written).await;
            assert!(whole.starts_with("HTTP/1.1 417 "), "{written}: {whole}");
        }
    });
}

#[test]
fn a_continue_whose_write_was_begun_is_completed_before_the_answer() {
    testing::on_both_drivers(|| async {
        let (io, mut client) = records::pair().await;
        // The last of these is in the middle, and only the same bytes may go on.
        poll_fn(|cx| {
            while io.poll_write(cx, CONTINUE).is_ready() {}
            Poll::Ready(())
        })
        .await;
        let mut inbound = Inbound::new(Rc::clone(&io));
        inbound.framing = Framing::Length(10);
        inbound.reader.begin_body(inbound.framing);
        inbound.awaits_continue = true;
        let waits = poll_fn(|cx| Poll::Ready(Http1Body::new(&mut inbound).poll_fill(cx).is_pending()));
        assert!(waits.await, "neither does the client take anything, nor has it sent its body");
        let reading = records::spawn_peer(async move { records::read_all(&mut client).await.0 });
        let head = ResponseHead::new(417, buffers::take(), buffers::take_fields());
        let response = Response { head, body: Empty, request: Http1Body::new(&mut inbound) };
        let mut answer = outbound::Answer::new(response, false, Version::Http11, true, Duration::from_secs(30));
        assert_eq!(answer.send(&io).await.cut, None);
        drop(answer);
        drop((inbound, io));
        let read = records::told(&reading).await;
        let answer = String::from_utf8(read).expect("it is text").replace("HTTP/1.1 100 Continue\r\n\r\n", "");
        assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
    });
}
