//! Our HTTP/1.1 core beside monoio-http's decoder and hyper's server, on the same requests.
//!
//! `head` is reading one head out of a buffer: httparse alone is the floor, since it checks neither framing nor host.
//! `exchange` is a request in and an empty answer out over a connection in memory, a thousand times: hyper cannot be
//! had without its connection, so ours does the same there. Neither shows what a kernel adds.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::hint::black_box;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http_body_util::Empty;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use monoio_codec::Decoder;
use monoio_http::h1::codec::decoder::RequestHeadDecoder;
use shardgate::proto::head::{Field, Framing, ResponseHead};
use shardgate::proto::http1::{BodyDecoder, ConnectionToken, HeadLimits, HeadScanner, encode_response, parse_request};
use shardgate_bench_codecs::{BROWSER, SMALL};

const EXCHANGES: usize = 1000;

fn heads(criterion: &mut Criterion) {
    for (name, raw) in [("head of a small GET", SMALL), ("head of a browser's GET", BROWSER)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(raw.len() as u64));
        group.bench_function("httparse", |bencher| {
            bencher.iter(|| {
                let mut headers = [httparse::EMPTY_HEADER; 100];
                let mut request = httparse::Request::new(&mut headers);
                request.parse(black_box(raw)).map(|status| status.is_complete())
            });
        });
        group.bench_function("shardgate", |bencher| {
            let mut lent = Some((Vec::with_capacity(4096), Vec::with_capacity(64)));
            bencher.iter(|| {
                let (mut bytes, fields) = lent.take().expect("given back below");
                bytes.clear();
                bytes.extend_from_slice(black_box(raw));
                lent = Some(read_head(bytes, fields).0);
            });
        });
        group.bench_function("monoio-http", |bencher| {
            let mut buffer = BytesMut::with_capacity(4096);
            bencher.iter(|| {
                buffer.reserve(raw.len());
                buffer.extend_from_slice(black_box(raw));
                RequestHeadDecoder.decode(&mut buffer).is_ok()
            });
        });
        group.finish();
    }
}

fn exchanges(criterion: &mut Criterion) {
    for (name, raw) in [("exchange of a small GET", SMALL), ("exchange of a browser's GET", BROWSER)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(EXCHANGES as u64));
        group.bench_function("shardgate", |bencher| bencher.iter(|| serve_ours(black_box(raw))));
        group.bench_function("hyper", |bencher| bencher.iter(|| serve_hyper(black_box(raw))));
        group.finish();
    }
}

/// A head in lent buffers, which come back.
fn read_head(bytes: Vec<u8>, fields: Vec<Field>) -> ((Vec<u8>, Vec<Field>), Framing, bool) {
    let limits = HeadLimits::default();
    let head_len = HeadScanner::new().scan(&bytes, &limits).expect("legal").expect("complete");
    let head = black_box(parse_request(bytes, head_len, fields, &limits).expect("legal"));
    ((head.bytes, head.fields), head.framing, head.keep_alive)
}

fn serve_ours(raw: &'static [u8]) -> usize {
    let mut wire = Wire { raw, left: EXCHANGES, written: 0 };
    let (mut bytes, mut fields) = (Vec::with_capacity(4096), Vec::with_capacity(64));
    let mut answer = ResponseHead::new(200, Vec::new(), Vec::new());
    let mut out = Vec::with_capacity(4096);
    while let Some(piece) = wire.next_piece() {
        bytes.clear();
        bytes.extend_from_slice(piece);
        let (lent, framing, keep_alive) = read_head(bytes, fields);
        (bytes, fields) = lent;
        assert!(keep_alive && BodyDecoder::new(framing).is_done());
        answer.bytes.clear();
        answer.fields.clear();
        answer.push(shardgate::proto::head::Known::Date, b"date", b"Mon, 23 Nov 2026 10:15:00 GMT");
        out.clear();
        encode_response(&answer, Framing::Length(0), ConnectionToken::None, &mut out);
        wire.written += out.len();
    }
    wire.written
}

fn serve_hyper(raw: &'static [u8]) {
    let wire = Wire { raw, left: EXCHANGES, written: 0 };
    let served = Cell::new(0);
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        black_box(request.headers().len());
        served.set(served.get() + 1);
        ready(Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new())))
    });
    // It reads ahead while it answers, and would take the end of the input for a client that left.
    let mut connection = pin!(http1::Builder::new().half_close(true).serve_connection(wire, service));
    let mut context = Context::from_waker(Waker::noop());
    // It yields now and then; nothing here ever waits.
    while connection.as_mut().poll(&mut context).map(|done| done.expect("served")).is_pending() {}
    assert_eq!(served.get(), EXCHANGES);
}

/// A connection in memory: each read is one request, writes are counted.
struct Wire {
    raw: &'static [u8],
    left: usize,
    written: usize,
}

impl Wire {
    fn next_piece(&mut self) -> Option<&'static [u8]> {
        self.left = self.left.checked_sub(1)?;
        Some(self.raw)
    }
}

impl Read for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.next_piece() {
            buffer.put_slice(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

criterion_group!(benches, heads, exchanges);
criterion_main!(benches);
