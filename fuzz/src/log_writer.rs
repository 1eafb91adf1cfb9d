//! The log's lines, with whatever a guest can put into them.
//!
//! The input is text, a line for each field of a record; the first line is also planted as a credential in the second.

use hutch_policy::log::{How, LONGEST_LINE, LONGEST_URL, Record, Table, clean, redact_url};
use hutch_policy::policy::Decision;

/// A record is one bounded line without control characters that is read back; what a client says is a credential is
/// not in it.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(record) = Record::from_line(&text) {
        assert!(Record::from_line(&record.to_line()).is_some());
    }
    // Not `lines`: what ends a line must come into the fields too.
    let mut fields = text.split('\u{1}').map(str::to_owned);
    let mut field = || fields.next().unwrap_or_default();
    let (secret, url) = (field(), field());
    let record = Record {
        url: Some(url.clone()),
        method: Some(field()),
        host: field(),
        rule: field(),
        reason: field(),
        protocol: Some(field()),
        address: Some(field()),
        credential: Some(field()),
        error: Some(field()),
        ..Record::new(1, &field(), How::Terminated, Decision::Denied)
    };
    let line = record.to_line();
    assert!(line.len() <= LONGEST_LINE && line.ends_with('\n'), "{}", line.len());
    assert!(!line[..line.len() - 1].contains(char::is_control));
    let read = Record::from_line(&line).expect("a line of ours");
    let redacted = redact_url(&url);
    assert_eq!(read.url.as_ref(), Some(&redacted));
    Table::default().add(&read);
    assert!(redacted.len() <= LONGEST_URL);
    assert_eq!(clean(&redacted, LONGEST_URL), redacted);
    planted(&secret, &url);
}

/// Credentials where they are usual, beside whatever else is in the URL.
fn planted(secret: &str, url: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric();
    // Shorter ones are found in words by chance.
    if secret.len() < 8 || secret.len() > 64 || !secret.chars().all(plain) || url.contains(secret) {
        return;
    }
    let marked = format!("Zq{secret}qZ");
    let query = url.split(['#', '?']).next().unwrap_or_default();
    for planted in [
        format!("{query}?token={marked}"),
        format!("{query}?a=1&api_key={marked}&b=2"),
        format!("{query}?%61ccess%5Ftoken={marked}"),
        format!("https://{marked}@a.example/"),
        format!("https://u:{marked}@a.example/{query}"),
        format!("{query}#{marked}"),
        format!("/x?next=https%3A%2F%2Fa.example%2F%3Fsig%3D{marked}"),
    ] {
        let redacted = redact_url(&planted);
        assert!(!redacted.contains(&marked), "{planted:?} gives {redacted:?}");
    }
}
