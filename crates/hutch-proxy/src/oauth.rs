//! A sign-in's token endpoint: tokens stay on the host, sentinels stand for them in the sandbox.
//!
//! Outward, values of the request's body that are sentinels become tokens. Inward, the tokens of a successful answer go to
//! the secret store and sentinels take their places; everything else, the time of expiry above all, stays as it is, so
//! that the client itself asks for new tokens in time. An answer that could hold tokens and is not understood goes
//! nowhere: tokens must not reach the guest.
//!
//! An identity token has claims that clients read, so it keeps them and loses its signature: it is good for nothing then.
//! A key that a token exchange makes is kept as the service's key, and the placeholder stands for it.

mod body;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hutch_policy::settings::{OAuth, Service};
use hutch_secrets::store::Tokens;
use hutch_secrets::{Secret, SecretError};

use self::body::{Fields, Issued, Swap};
use crate::broker::{SentSecret, SentTokens};
use crate::credential::{Broker, Lost, scrub_response};
use crate::exchange::{Answer, Body, Pending, Withheld, full};
use crate::scrub::Needles;
use crate::scrub::decode::decoded;

/// Longest body of a token request or answer.
const BODY_MAX: usize = 1024 * 1024;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Tokens of a sign-in, or new ones for old.
    Tokens,
    /// One token for another kind of credential.
    Exchange,
}

/// Puts tokens in the place of sentinels, and says what the request asks for.
pub(crate) async fn outward(
    oauth: &OAuth,
    tokens: Option<&Tokens>,
    request: Request<Body>,
) -> Result<(Request<Body>, Grant), Withheld> {
    let (mut parts, request_body) = request.into_parts();
    let bytes = collect(request_body, "the request to the token endpoint").await?;
    let json = is_json(&parts.headers);
    let mut swap = Swap::default();
    if let Some(tokens) = tokens {
        swap.put(&oauth.access_sentinel, &tokens.access);
        if let Some(refresh) = &tokens.refresh {
            swap.put(&oauth.refresh_sentinel, refresh);
        }
        if let Some(id) = &tokens.id {
            swap.put(&body::without_signature(id.expose()), id);
        }
    }
    let fields = Fields::parse(&bytes, json);
    let exchange = fields.grant().is_some_and(|grant| grant.ends_with(":token-exchange"));
    let grant = if exchange { Grant::Exchange } else { Grant::Tokens };
    let bytes = fields.swapped(&swap).map_or(bytes, Bytes::from);
    if let Some(access) = tokens.map(|tokens| &tokens.access) {
        body::swap_bearer(&mut parts.headers, &oauth.access_sentinel, access)
            .map_err(|_| Withheld("the access token cannot be sent".to_owned()))?;
    }
    crate::credential::ask_readable(&mut parts.headers);
    corrected(&mut parts.headers, bytes.len());
    Ok((Request::from_parts(parts, full(bytes)), grant))
}

/// The way back from a token endpoint.
#[derive(Debug)]
pub(crate) struct TokenAnswer {
    pub(crate) service: Service,
    pub(crate) oauth: OAuth,
    pub(crate) grant: Grant,
    /// Of what was known before.
    pub(crate) needles: Arc<Needles>,
    pub(crate) broker: Broker,
    pub(crate) bodiless: bool,
}

impl Answer for TokenAnswer {
    fn receive(
        self: Box<Self>,
        response: Response<Body>,
    ) -> Pending<'static, Result<Response<Body>, Withheld>> {
        Box::pin(async move { self.inward(response).await })
    }
}

impl TokenAnswer {
    async fn inward(&self, response: Response<Body>) -> Result<Response<Body>, Withheld> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Withheld("a token endpoint switches no protocol".to_owned()));
        }
        // An error has no tokens, but may repeat those that were sent.
        if !response.status().is_success() || self.bodiless {
            return scrub_response(&self.needles, self.bodiless, response);
        }
        let (mut parts, response_body) = response.into_parts();
        let response_body = decoded(&mut parts.headers, response_body)?;
        let bytes = collect(response_body, "the token endpoint's answer").await?;
        let unknown =
            || Withheld("the token endpoint answered in a form that is not understood".to_owned());
        let mut issued = Issued::default();
        let text = if bytes.is_empty() {
            bytes
        } else {
            let masks = body::Masks {
                access: match self.grant {
                    Grant::Tokens => &self.oauth.access_sentinel,
                    Grant::Exchange => &self.service.placeholder,
                },
                refresh: &self.oauth.refresh_sentinel,
            };
            let mut fields = Fields::parse(&bytes, is_json(&parts.headers));
            if !fields.take_tokens(&masks, &mut issued) {
                return Err(unknown());
            }
            Bytes::from(fields.into_bytes().ok_or_else(unknown)?)
        };
        let secrets = self.keep(issued).await?;
        corrected(&mut parts.headers, text.len());
        // What was issued may be elsewhere in the answer too, what was sent as well.
        let response = Response::from_parts(parts, full(text));
        let response = scrub_response(&self.needles, false, response)?;
        if secrets.is_empty() {
            return Ok(response);
        }
        let new = Needles::new(&secrets)
            .map_err(|_| Withheld("the tokens could not be kept apart".to_owned()))?;
        scrub_response(&Arc::new(new), false, response)
    }

    /// Stores what was issued and gives it, as what must not be in the answer.
    async fn keep(&self, issued: Issued) -> Result<Vec<Secret>, Withheld> {
        let unfit =
            |error: SecretError| Withheld(format!("the token endpoint's token is unfit: {error}"));
        let lost = |Lost(reason): Lost| {
            Withheld(format!("the tokens of the sign-in could not be kept on the host: {reason}"))
        };
        let parsed = |text: Option<String>| text.map(Secret::parse).transpose().map_err(unfit);
        let access = parsed(issued.access)?;
        let refresh = parsed(issued.refresh)?;
        let id = parsed(issued.id)?;
        let service = &self.service.name;
        match (&access, self.grant) {
            (Some(key), Grant::Exchange) => {
                self.broker.keep_key(service, SentSecret::from(key)).await.map_err(lost)?;
            }
            (Some(access), Grant::Tokens) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let tokens = SentTokens {
                    access: access.into(),
                    refresh: refresh.as_ref().map(SentSecret::from),
                    id: id.as_ref().map(SentSecret::from),
                    expires_at: issued.expires_in.map(|left| now.as_secs().saturating_add(left)),
                    scopes: issued.scopes,
                };
                self.broker.keep_tokens(service, tokens).await.map_err(lost)?;
            }
            (None, _) => {}
        }
        Ok([access, refresh, id].into_iter().flatten().collect())
    }
}

async fn collect(mut body: Body, what: &str) -> Result<Bytes, Withheld> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Withheld(format!("{what} broke off")))?;
        // Trailers of a token endpoint have no use.
        let data = frame.into_data().unwrap_or_default();
        if bytes.len() + data.len() > BODY_MAX {
            return Err(Withheld(format!("{what} is longer than {BODY_MAX} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

/// The length of a body that was read whole.
fn corrected(headers: &mut HeaderMap, length: usize) {
    headers.remove(TRANSFER_ENCODING);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

#[cfg(test)]
mod tests;
