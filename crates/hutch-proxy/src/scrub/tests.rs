//! The secret never comes out, whatever way it is spelled and cut; everything else does, unchanged and at once.

use std::collections::VecDeque;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::body::{QUIET, scrubbed};
use super::decode::decoded;
use super::*;
use crate::exchange::{Body, BodyError, full};

const KEY: &str = "sk-proj-Ab3/xY+9_z~Q\"7&kLm";

fn needles(secrets: &[&str]) -> Arc<Needles> {
    let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::parse(*text).unwrap()).collect();
    Arc::new(Needles::new(&secrets).unwrap())
}

/// All at once, cut at these places.
fn scrub_cut(needles: &Arc<Needles>, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut scrubber = Scrubber::new(Arc::clone(needles));
    let mut out = Vec::new();
    let mut from = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.sort_unstable();
    for cut in cuts {
        out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(&text[from..cut])));
        from = cut;
    }
    out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(&text[from..])));
    out.extend_from_slice(&scrubber.finish());
    out
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

fn spellings(key: &str) -> Vec<Vec<u8>> {
    let basic = |user: &str| STANDARD.encode(format!("{user}:{key}")).into_bytes();
    let mut all = vec![
        key.as_bytes().to_vec(),
        STANDARD.encode(key).into_bytes(),
        URL_SAFE.encode(key).into_bytes(),
        basic("x-access-token"),
        basic("ab"),
        basic("u"),
        serde_json::to_vec(key).unwrap(),
        hex::encode(key).into_bytes(),
        hex::encode_upper(key).into_bytes(),
    ];
    let percent: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
    all.push(percent.into_bytes());
    all
}

#[test]
fn every_spelling_is_masked_wherever_it_is_cut() {
    let needles = needles(&[KEY]);
    for spelling in spellings(KEY) {
        let text = [b"{\"before\": ".as_slice(), &spelling, b", after}"].concat();
        let whole = scrub_cut(&needles, &text, &[]);
        assert_eq!(whole.len(), text.len());
        for form in forms::of(KEY.as_bytes()) {
            assert!(!contains(&whole, &form), "{}", String::from_utf8_lossy(&whole));
        }
        assert!(whole.starts_with(b"{\"before\": ") && whole.ends_with(b", after}"));
        for cut in 0..=text.len() {
            assert_eq!(scrub_cut(&needles, &text, &[cut]), whole);
        }
        let each: Vec<usize> = (0..text.len()).collect();
        assert_eq!(scrub_cut(&needles, &text, &each), whole);
    }
}

proptest! {
    #[test]
    fn no_secret_comes_out_and_nothing_else_changes(
        secret in "[ -~]{6,40}",
        parts in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..20), any::<prop::sample::Index>()), 0..8),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let Ok(secret) = Secret::parse(secret) else { return Ok(()) };
        prop_assume!(secret.expose().len() >= SHORTEST);
        let needles = Arc::new(Needles::new([&secret]).unwrap());
        let forms = forms::of(secret.expose().as_bytes());
        let mut text = Vec::new();
        for (kind, noise, place) in &parts {
            match kind % 4 {
                // Whole, a beginning, an end, or none.
                0 => text.extend_from_slice(place.get::<Vec<u8>>(&forms)),
                1 => { let form = place.get::<Vec<u8>>(&forms); text.extend_from_slice(&form[..place.index(form.len())]); }
                2 => { let form = place.get::<Vec<u8>>(&forms); text.extend_from_slice(&form[place.index(form.len())..]); }
                _ => {}
            }
            text.extend_from_slice(noise);
        }
        let out = scrub_cut(&needles, &text, &cuts);
        prop_assert_eq!(out.len(), text.len());
        prop_assert_eq!(&out, &scrub_cut(&needles, &text, &[]));
        for form in &forms {
            if form.len() >= SHORTEST {
                prop_assert!(!contains(&out, form));
            }
        }
        // What changed became the mask.
        for (after, before) in out.iter().zip(&text) {
            prop_assert!(after == before || *after == needles.mask);
        }
        if needles.find(&text).is_empty() {
            prop_assert_eq!(out, text);
        }
    }

    #[test]
    fn released_beginnings_do_not_save_the_rest(cut in 0_usize..26, again in 0_usize..26) {
        static NEEDLES: OnceLock<Arc<Needles>> = OnceLock::new();
        let needles = NEEDLES.get_or_init(|| needles(&[KEY]));
        let mut scrubber = Scrubber::new(Arc::clone(needles));
        let (first, last) = (cut.min(again), cut.max(again));
        let mut out = Vec::new();
        for part in [&KEY[..first], &KEY[first..last], &KEY[last..], " and more"] {
            out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(part.as_bytes())));
            scrubber.release(&mut out);
        }
        out.extend_from_slice(&scrubber.finish());
        prop_assert_eq!(out.len(), KEY.len() + 9);
        prop_assert!(!contains(&out, &KEY.as_bytes()[RELEASE_MAX..]));
        prop_assert!(out.ends_with(b" and more"));
        let open = out.iter().zip(KEY.as_bytes()).take_while(|(a, b)| a == b).count();
        prop_assert!(open <= needles.release, "{} of {}", open, needles.release);
    }
}

#[test]
fn nothing_is_held_but_the_beginning_of_a_needle() {
    let mut scrubber = Scrubber::new(needles(&["sk-secret-value"]));
    for whole in ["data: {\"text\":\"hello\"}\n\n", "tasks.", "sk-other", "SK-SECRET-VALU\n"] {
        assert_eq!(scrubber.push(Bytes::from(whole)), whole);
        assert_eq!(scrubber.held(), 0, "{whole}");
    }
    assert_eq!(scrubber.push(Bytes::from("a sk-sec")), "a ");
    assert_eq!(scrubber.held(), 6);
    assert_eq!(scrubber.push(Bytes::from("tive")), "sk-sective");
    assert_eq!(scrubber.push(Bytes::from("sk-")), "");
    assert_eq!(scrubber.finish(), "sk-");
}

#[test]
fn what_needs_no_change_is_not_copied() {
    let mut scrubber = Scrubber::new(needles(&[KEY]));
    let chunk = Bytes::from("nothing here\n".repeat(100));
    assert_eq!(scrubber.push(chunk.clone()).as_ptr(), chunk.as_ptr());
}

#[test]
fn several_secrets_and_short_ones() {
    let needles = needles(&["first-secret", "first-secret-longer", "abc"]);
    let out = scrub_cut(&needles, b"first-secret-longer abc first-secret", &[3, 9]);
    assert_eq!(out, b"************-longer abc ************");
}

#[test]
fn the_mask_is_in_no_needle() {
    let needles = needles(&["***######___..."]);
    assert!(!b"*#_.".contains(&needles.mask));
    let out = scrub_cut(&needles, b"x***######___...y", &[5]);
    assert!(!contains(&out, b"###"));
}

#[test]
fn headers_and_trailers_are_masked() {
    let needles = needles(&[KEY]);
    let mut headers = HeaderMap::new();
    headers.insert("x-echo", format!("Bearer {KEY}").parse().unwrap());
    headers.append("x-echo", STANDARD.encode(format!("x-access-token:{KEY}")).parse().unwrap());
    headers.insert("x-other", "fine".parse().unwrap());
    headers.insert(
        http::HeaderName::from_bytes(hex::encode(KEY).as_bytes()).unwrap(),
        "1".parse().unwrap(),
    );
    needles.scrub_headers(&mut headers);
    assert_eq!(headers["x-other"], "fine");
    assert_eq!(headers.len(), 3);
    for value in headers.values() {
        for spelling in spellings(KEY) {
            assert!(!contains(value.as_bytes(), &spelling), "{value:?}");
        }
    }
    assert!(headers["x-echo"].to_str().unwrap().starts_with("Bearer **"));
}

/// A body whose frames come one by one, with pauses that only time ends.
struct Slow(VecDeque<Option<&'static str>>, Option<Pin<Box<tokio::time::Sleep>>>);

impl http_body::Body for Slow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(pause) = &mut self.1 {
                match pause.as_mut().poll(context) {
                    Poll::Ready(()) => self.1 = None,
                    Poll::Pending => return Poll::Pending,
                }
            }
            match self.0.pop_front() {
                Some(Some(text)) => return Poll::Ready(Some(Ok(Frame::data(text.into())))),
                Some(None) => {
                    self.1 = Some(Box::pin(tokio::time::sleep(Duration::from_secs(3600))));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

async fn next_data(body: &mut Body) -> Option<Bytes> {
    body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
}

#[tokio::test(start_paused = true)]
async fn events_are_not_delayed_and_last_bytes_come_after_a_moment() {
    let frames = [Some("data: one\n\n"), None, Some("yes"), None, Some("k-secret-value!"), None];
    let slow = Slow(frames.into(), None);
    let mut body = scrubbed(slow.boxed_unsync(), needles(&["sk-secret-value"]));
    let begun = tokio::time::Instant::now();
    assert_eq!(next_data(&mut body).await.unwrap(), "data: one\n\n");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(next_data(&mut body).await.unwrap(), "ye");
    let then = tokio::time::Instant::now();
    assert_eq!(next_data(&mut body).await.unwrap(), "s");
    assert!(then.elapsed() >= QUIET && then.elapsed() < QUIET * 3);
    // What was let go does not save the rest.
    assert_eq!(next_data(&mut body).await.unwrap(), "**************!");
    assert!(next_data(&mut body).await.is_none());
}

#[tokio::test]
async fn lengths_stay_true_and_trailers_come_last() {
    let needles = needles(&[KEY]);
    let text = format!("a {KEY} b {}", &KEY[..9]);
    let body = scrubbed(full(text.clone()), Arc::clone(&needles));
    assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
    let out = body.collect().await.unwrap().to_bytes();
    assert_eq!(out.len(), text.len());
    assert!(!contains(&out, KEY.as_bytes()));

    let mut trailers = HeaderMap::new();
    trailers.insert("x-key", KEY.parse().unwrap());
    let half = KEY.split_at(12);
    let frames = vec![
        Ok(Frame::data(Bytes::from(half.0))),
        Ok(Frame::data(Bytes::from(half.1))),
        Ok(Frame::data(Bytes::from(&KEY[..5]))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = Frames(frames.into()).boxed_unsync();
    let collected = scrubbed(body, needles).collect().await.unwrap();
    let trailers = collected.trailers().unwrap().clone();
    assert!(!contains(trailers["x-key"].as_bytes(), KEY.as_bytes()));
    let out = collected.to_bytes();
    assert!(out.ends_with(&KEY.as_bytes()[..5]) && !contains(&out, half.1.as_bytes()));
}

struct Frames(VecDeque<Result<Frame<Bytes>, BodyError>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn encoded(coding: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-encoding", coding.parse().unwrap());
    headers.insert("content-length", "17".parse().unwrap());
    headers
}

#[tokio::test]
async fn a_compressed_answer_is_looked_through() {
    let text = format!("{}{KEY}{}", "before ".repeat(5000), " after".repeat(5000));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(text.as_bytes()).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(text.as_bytes()).unwrap();
    for (coding, bytes) in [("GZIP", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap())] {
        let mut headers = encoded(coding);
        let body = decoded(&mut headers, full(bytes.clone())).unwrap();
        assert!(headers.is_empty());
        let out = scrubbed(body, needles(&[KEY])).collect().await.unwrap().to_bytes();
        assert_eq!(out.len(), text.len());
        assert!(!contains(&out, KEY.as_bytes()));
        // One that broke off is no whole answer.
        let cut = Bytes::from(bytes).slice(..20);
        let mut headers = encoded(coding);
        assert!(decoded(&mut headers, full(cut)).unwrap().collect().await.is_err());
    }
}

#[tokio::test]
async fn what_cannot_be_looked_through_is_withheld() {
    for coding in ["br", "zstd", "gzip, br", "gzip, gzip", "dcb", "x"] {
        decoded(&mut encoded(coding), full("x")).unwrap_err();
    }
    let mut headers = encoded("identity");
    let body = decoded(&mut headers, full("x")).unwrap();
    assert_eq!(headers["content-length"], "17");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "x");
}
