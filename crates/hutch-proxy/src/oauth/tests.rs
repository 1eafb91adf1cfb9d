//! A sign-in and its renewal, as the clients do them: the guest's side sees sentinels, the server's side tokens.

use http::Method;

use super::*;
use crate::credential::tests::{World, get};
use crate::exchange::Prepared;

const ANTHROPIC: (&str, &str) = ("platform.claude.com:443", "/v1/oauth/token");
const OPENAI: (&str, &str) = ("auth.openai.com:443", "/oauth/token");

async fn post(
    world: &World,
    (place, path): (&str, &str),
    kind: &str,
    text: impl Into<Bytes>,
) -> Result<Prepared, Withheld> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(CONTENT_TYPE, kind)
        .header(TRANSFER_ENCODING, "chunked")
        .header(http::header::ACCEPT_ENCODING, "gzip")
        .body(full(text))
        .unwrap();
    world.prepare(place, true, request).await
}

async fn sent(prepared: &mut Prepared) -> String {
    let body = std::mem::replace(prepared.request.body_mut(), crate::exchange::empty());
    let bytes = body.collect().await.unwrap().to_bytes();
    let length = prepared.request.headers()[CONTENT_LENGTH].to_str().unwrap().to_owned();
    assert_eq!(length, bytes.len().to_string());
    assert!(!prepared.request.headers().contains_key(TRANSFER_ENCODING));
    assert_eq!(prepared.request.headers()[http::header::ACCEPT_ENCODING], "identity");
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn answered(
    prepared: Prepared,
    status: u16,
    kind: &str,
    text: impl Into<Bytes>,
) -> Result<String, Withheld> {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .header("x-echo", "refresh-token-1 access-token-2")
        .body(full(text))
        .unwrap();
    let response = prepared.answer.unwrap().receive(response).await?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    if let Some(length) = parts.headers.get(CONTENT_LENGTH) {
        assert_eq!(length.to_str().unwrap(), bytes.len().to_string());
    }
    Ok(format!("{:?} {}", parts.headers["x-echo"], String::from_utf8_lossy(&bytes)))
}

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

#[tokio::test]
async fn a_sign_in_leaves_its_tokens_on_the_host() {
    let world = World::builtin(&["anthropic"]);
    let code = r#"{"grant_type":"authorization_code","code":"c"}"#;
    let mut prepared = post(&world, ANTHROPIC, JSON, code).await.unwrap();
    assert_eq!(sent(&mut prepared).await, code);
    let text = r#"{"token_type":"Bearer","access_token":"access-token-2","expires_in":28800,"refresh_token":"refresh-token-2","scope":"user:inference user:profile","account":{"uuid":"u","hint":"access-token-2"}}"#;
    let seen = answered(prepared, 200, "application/json; charset=utf-8", text).await.unwrap();
    for part in ["access-token-2", "refresh-token-2"] {
        assert!(!seen.contains(part), "{seen}");
    }
    for part in
        ["sk-ant-oat01-proxy-managed", "sk-ant-ort01-proxy-managed", "28800", "\"uuid\":\"u\""]
    {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let kept = world.store().read().unwrap()["anthropic"].oauth.clone().unwrap();
    assert_eq!(kept.access.expose(), "access-token-2");
    assert_eq!(kept.refresh.unwrap().expose(), "refresh-token-2");
    assert_eq!(kept.scopes, ["user:inference", "user:profile"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(kept.expires_at.unwrap().abs_diff(now + 28800) < 60);

    // And the API takes the sentinel at once.
    let api = get(&[("authorization", "Bearer sk-ant-oat01-proxy-managed")]);
    let prepared = world.prepare("api.anthropic.com:443", true, api).await.unwrap();
    assert_eq!(prepared.request.headers()["authorization"], "Bearer access-token-2");
}

#[tokio::test]
async fn a_renewal_is_sent_with_the_real_token_in_both_forms() {
    for (place, service, kind, before, after) in [
        (
            ANTHROPIC,
            "anthropic",
            JSON,
            r#"{"grant_type":"refresh_token","refresh_token":"sk-ant-ort01-proxy-managed"}"#,
            r#"{"grant_type":"refresh_token","refresh_token":"refresh-token-1"}"#,
        ),
        (
            OPENAI,
            "openai",
            FORM,
            "grant_type=refresh_token&refresh_token=oai-ort01-proxy-managed&scope=a+b",
            "grant_type=refresh_token&refresh_token=refresh-token-1&scope=a+b",
        ),
    ] {
        let world = World::builtin(&[service]);
        world.sign_in(service, "access-token-1", "refresh-token-1");
        let mut prepared = post(&world, place, kind, before).await.unwrap();
        assert_eq!(sent(&mut prepared).await, after);
        // The answer has no new refresh token: the old one stays.
        let text = r#"{"access_token":"access-token-2","expires_in":60}"#;
        let seen = answered(prepared, 200, JSON, text).await.unwrap();
        assert!(!seen.contains("access-token-2") && !seen.contains("refresh-token-1"), "{seen}");
        let kept = world.store().read().unwrap()[service].oauth.clone().unwrap();
        assert_eq!(kept.access.expose(), "access-token-2");
        assert_eq!(kept.refresh.unwrap().expose(), "refresh-token-1");
    }
}

#[tokio::test]
async fn a_refused_renewal_does_not_repeat_the_token() {
    let world = World::builtin(&["openai"]);
    world.sign_in("openai", "access-token-1", "refresh-token-1");
    let text = "grant_type=refresh_token&refresh_token=oai-ort01-proxy-managed";
    let prepared = post(&world, OPENAI, FORM, text).await.unwrap();
    let body = r#"{"error":"invalid refresh-token-1"}"#;
    let seen = answered(prepared, 400, JSON, body).await.unwrap();
    assert!(!seen.contains("refresh-token-1") && seen.contains("invalid ****"), "{seen}");
    assert_eq!(
        world.store().read().unwrap()["openai"].oauth.as_ref().unwrap().access.expose(),
        "access-token-1"
    );
}

#[tokio::test]
async fn an_identity_token_keeps_its_claims_and_a_made_key_stays() {
    let world = World::builtin(&["openai"]);
    let code = "grant_type=authorization_code&code=c";
    let prepared = post(&world, OPENAI, FORM, code).await.unwrap();
    let text = r#"{"access_token":"access-token-2","refresh_token":"refresh-token-2","id_token":"head.claims.signature-of-it"}"#;
    let seen = answered(prepared, 200, JSON, text).await.unwrap();
    assert!(seen.contains("head.claims.proxy-managed"), "{seen}");
    assert!(!seen.contains("signature-of-it"), "{seen}");
    let masked =
        seen.split("\"id_token\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();

    let exchange = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&requested_token=openai-api-key&subject_token={masked}"
    );
    let mut prepared = post(&world, OPENAI, FORM, exchange).await.unwrap();
    let text = sent(&mut prepared).await;
    assert!(text.ends_with("subject_token=head.claims.signature-of-it"), "{text}");
    let answer = r#"{"access_token":"sk-made-key"}"#;
    let seen = answered(prepared, 200, JSON, answer).await.unwrap();
    assert!(!seen.contains("sk-made-key") && seen.contains("proxy-managed"), "{seen}");
    let kept = world.store().read().unwrap()["openai"].clone();
    assert_eq!(kept.api_key.unwrap().expose(), "sk-made-key");
    assert_eq!(kept.oauth.unwrap().access.expose(), "access-token-2");
}

#[tokio::test]
async fn an_answer_that_is_not_understood_goes_nowhere() {
    let world = World::builtin(&["openai"]);
    for (kind, text) in [
        (JSON, "{\"access_token\":\"access-token-2\""),
        ("text/plain", "access-token-2"),
        ("text/html", "<a href='?x=access-token-2'>"),
        (JSON, "{\"access_token\":\"a\\u0000b\"}"),
    ] {
        let prepared = post(&world, OPENAI, FORM, "grant_type=x").await.unwrap();
        answered(prepared, 200, kind, text).await.unwrap_err();
    }
    assert!(world.store().read().unwrap().is_empty());
}

#[tokio::test]
async fn bodies_are_bounded() {
    let world = World::builtin(&["openai"]);
    let long = "x=".to_owned() + &"y".repeat(BODY_MAX);
    let refused = post(&world, OPENAI, FORM, long.clone()).await.unwrap_err();
    assert!(refused.0.contains("longer than"), "{}", refused.0);
    let prepared = post(&world, OPENAI, FORM, "x=y").await.unwrap();
    answered(prepared, 200, FORM, long).await.unwrap_err();
}

#[tokio::test]
async fn tokens_that_cannot_be_kept_do_not_reach_the_guest() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::builtin(&["openai"]);
    world.sign_in("openai", "access-token-1", "refresh-token-1");
    let prepared = post(&world, OPENAI, FORM, "grant_type=x").await.unwrap();
    let file = world.directory().join("secrets.json");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = r#"{"access_token":"access-token-2"}"#;
    let withheld = answered(prepared, 200, JSON, text).await.unwrap_err();
    assert!(withheld.0.contains("could not be kept"), "{}", withheld.0);
    assert!(!withheld.0.contains("access-token-2"));
}

#[tokio::test]
async fn other_paths_of_the_token_host_are_left_alone() {
    let world = World::builtin(&["openai"]);
    world.sign_in("openai", "access-token-1", "refresh-token-1");
    let text = "refresh_token=oai-ort01-proxy-managed";
    let prepared = post(&world, (OPENAI.0, "/other"), FORM, text).await.unwrap();
    assert!(prepared.answer.is_none());
    let body = prepared.request.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, text);
}
