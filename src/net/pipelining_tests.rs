//! What clients that pipeline without a pause leave of a shard for others.

use std::{cell::Cell, future::Future, io::Write as _, rc::Rc, task::Context, task::Poll, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    AnswerBody, Connections, Cut, Finish, HttpLimits, Mistake, Peer, RequestBody, Response, Scheme, Sent, Service,
    Slot, Stream, Upgrade, serve_connection,
};
use crate::{
    proto::{
        head::{Framing, RequestHead, ResponseHead},
        http1::HeadLimits,
    },
    shard::{Instant, TcpStream, buffers, clock, task, testing},
};

/// Clients that pipeline, and the requests that each has sent before the test begins.
const CLIENTS: u64 = 64;
const REQUESTS: u64 = 2_000;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Answers everything with nothing, at once, and counts.
struct Counting(Cell<u64>);

struct Nothing;

impl Finish for Nothing {
    fn give_up(&mut self, _: Sent) {}

    fn finish(&mut self, _: Sent) -> Instant {
        clock::now()
    }
}

impl Service for Counting {
    type Body = Nothing;
    type Exchange = Nothing;

    fn limits(&self) -> Rc<HttpLimits> {
        let long = Duration::from_mins(1);
        Rc::new(HttpLimits {
            head: HeadLimits::default(),
            header_timeout: long,
            request_timeout: long,
            keep_alive_timeout: long,
            body_bytes_max: 0,
            write_timeout: long,
            requests_max: 0,
        })
    }

    fn begin(&self, _: &Peer, _: &Slot, _: RequestHead, _: Instant) -> Nothing {
        self.0.set(self.0.get() + 1);
        Nothing
    }

    fn serve<R: RequestBody>(&self, _: &mut Nothing, request: R) -> impl Future<Output = Option<Response<R, Nothing>>> {
        let mut head = ResponseHead::new(200, buffers::take(), buffers::take_fields());
        head.framing = Framing::Length(0);
        std::future::ready(Some(Response { head, body: Nothing, request }))
    }

    fn refuse<R: RequestBody>(&self, _: &Peer, mistake: Mistake, _: R, _: Instant) -> (Response<R, Nothing>, Nothing) {
        panic!("nobody makes mistakes here: {mistake:?}")
    }

    fn switch(&self, _: Nothing, _: Nothing, _: Vec<u8>, _: u64) -> Option<Box<dyn Upgrade>> {
        None
    }
}

impl AnswerBody for Nothing {
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

#[test]
fn a_neighbour_of_many_who_pipeline_waits_for_a_few_turns() {
    testing::on_both_drivers(|| async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Connections::new();
        let service = Rc::new(Counting(Cell::new(0)));
        let serve = || {
            let (server, peer) = listener.accept().expect("accepted");
            let (service, slot) = (Rc::clone(&service), connections.enter());
            task::spawn(peer, async move {
                let server = Stream::Plain(TcpStream::from_fd(server.into()).expect("registered"));
                let switched = serve_connection(service, server, Peer::new(peer, Scheme::Http), &slot).await;
                assert!(switched.is_none());
            });
        };
        let pipelining: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = std::net::TcpStream::connect(address).expect("connected");
                let sent = REQUEST.repeat(usize::try_from(REQUESTS).expect("few"));
                client.write_all(&sent).expect("the kernel has room for 54 KiB");
                serve();
                client
            })
            .collect();
        let due = clock::now() + Duration::from_secs(30);
        let mut neighbour = TcpStream::connect(address, due).await.expect("connected");
        serve();
        let mut served = Vec::new();
        for _ in 0..20 {
            let before = service.0.get();
            neighbour.write_all(REQUEST).await.expect("written");
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(neighbour.read_u8().await.expect("an answer"));
            }
            served.push(service.0.get() - before);
        }
        // A turn to hear the request and one to hear the answer, in each of which everybody else has one answered.
        assert!(served.iter().all(|&served| served <= 4 * CLIENTS), "served meanwhile: {served:?}");
        assert!(served.iter().sum::<u64>() >= 20 * CLIENTS, "they went on: {served:?}");
        drop(pipelining);
    });
}
