//! The models of the providers, as far as an agent's program needs one: asked for the first time, the model has the agent run
//! a command that writes a file; given the command's result, it says that it is done.
//!
//! | host and path | who speaks it |
//! | --- | --- |
//! | `api.anthropic.com/v1/messages` | claude, opencode |
//! | `api.openai.com/v1/responses` | codex |
//! | `generativelanguage.googleapis.com/…:streamGenerateContent` | gemini |
//! | `api.githubcopilot.com/chat/completions` | copilot |

use hutch_testkit::internet::protocol::Request as Seen;
use hutch_testkit::internet::{MODEL_ANSWER, MODEL_COMMAND};
use serde_json::{Value, json};

/// What is sent back.
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: String,
}

/// The answer of a provider; `None` for everything that is none's.
pub(crate) fn answer(seen: &Seen, word: &str) -> Option<Said> {
    let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
    let host = seen.host.split(':').next().unwrap_or_default();
    match (host, word) {
        ("api.anthropic.com", "/v1/messages") => Some(events(anthropic(&body))),
        // It would rather have a WebSocket.
        ("api.openai.com", "/v1/responses") if seen.method == "GET" => {
            Some(Said { status: 426, kind: "text/plain", body: String::new() })
        }
        ("api.openai.com", "/v1/responses") => Some(events(responses(&body))),
        ("generativelanguage.googleapis.com", _) if word.contains("enerateContent") => {
            Some(gemini(&body, word))
        }
        ("api.githubcopilot.com", "/chat/completions") => Some(events(chat(&body))),
        ("api.githubcopilot.com", "/models") => Some(data(&copilot_models())),
        ("api.github.com", "/copilot_internal/user") => Some(data(&copilot_user())),
        ("models.opencode.ai" | "models.dev", "/api.json") => Some(data(&opencode_models())),
        _ => None,
    }
}

fn data(value: &Value) -> Said {
    Said { status: 200, kind: "application/json", body: value.to_string() }
}

/// Server-sent events: name and data.
fn events(list: Vec<(&str, Value)>) -> Said {
    let mut body = String::new();
    for (name, data) in list {
        if !name.is_empty() {
            body.extend(["event: ", name, "\n"]);
        }
        let text = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
        body.extend(["data: ", &text, "\n\n"]);
    }
    Said { status: 200, kind: "text/event-stream", body }
}

/// The first of these tools that the request offers; their names are found by `name` in each entry.
fn offered<'n>(tools: &Value, names: &[&'n str]) -> Option<&'n str> {
    let has = |name: &str| {
        let mut all = tools.as_array().into_iter().flatten();
        all.any(|tool| {
            [tool.pointer("/name"), tool.pointer("/function/name")].contains(&Some(&json!(name)))
        })
    };
    names.iter().copied().find(|name| has(name))
}

fn anthropic(body: &Value) -> Vec<(&'static str, Value)> {
    let done = body["messages"].to_string().contains("\"tool_result\"");
    let tool = offered(&body["tools"], &["Bash", "bash"]).filter(|_| !done);
    let (block, delta, reason) = match tool {
        Some(name) => {
            let input =
                json!({"command": MODEL_COMMAND, "description": "write a file"}).to_string();
            (
                json!({"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}),
                json!({"type": "input_json_delta", "partial_json": input}),
                "tool_use",
            )
        }
        None => (
            json!({"type": "text", "text": ""}),
            json!({"type": "text_delta", "text": MODEL_ANSWER}),
            "end_turn",
        ),
    };
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1}
    });
    let part = |kind: &'static str, mut rest: Value| {
        rest["type"] = json!(kind);
        (kind, rest)
    };
    vec![
        part("message_start", json!({"message": message})),
        part("content_block_start", json!({"index": 0, "content_block": block})),
        part("content_block_delta", json!({"index": 0, "delta": delta})),
        part("content_block_stop", json!({"index": 0})),
        part(
            "message_delta",
            json!({"delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 1}}),
        ),
        part("message_stop", json!({})),
    ]
}

fn responses(body: &Value) -> Vec<(&'static str, Value)> {
    let done = body["input"].to_string().contains("\"function_call_output\"");
    let tool = offered(&body["tools"], &["exec_command", "shell_command", "shell"]);
    let item = match tool.filter(|_| !done) {
        Some(name) => {
            let arguments = match name {
                "exec_command" => json!({"cmd": MODEL_COMMAND}),
                "shell_command" => json!({"command": MODEL_COMMAND}),
                _ => json!({"command": ["bash", "-lc", MODEL_COMMAND]}),
            };
            json!({
                "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name,
                "arguments": arguments.to_string(), "status": "completed"
            })
        }
        None => json!({
            "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": MODEL_ANSWER, "annotations": []}]
        }),
    };
    let response = |status: &str, output: Value| {
        json!({
            "id": "resp_1", "object": "response", "created_at": 1, "status": status, "output": output,
            "model": body["model"],
            "usage": {
                "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 1,
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 2
            }
        })
    };
    let mut number = 0;
    let mut part = |kind: &'static str, mut rest: Value| {
        rest["type"] = json!(kind);
        rest["sequence_number"] = json!(number);
        number += 1;
        (kind, rest)
    };
    vec![
        part("response.created", json!({"response": response("in_progress", json!([]))})),
        part("response.output_item.added", json!({"output_index": 0, "item": item})),
        part("response.output_item.done", json!({"output_index": 0, "item": item})),
        part("response.completed", json!({"response": response("completed", json!([item]))})),
    ]
}

fn chat(body: &Value) -> Vec<(&'static str, Value)> {
    let messages = body["messages"].as_array();
    let done = messages.into_iter().flatten().any(|message| message["role"] == "tool");
    let tool = offered(&body["tools"], &["bash", "shell"]).filter(|_| !done);
    let (delta, reason) = match tool {
        Some(name) => {
            let arguments = json!({"command": MODEL_COMMAND, "description": "write a file"});
            let function = json!({"name": name, "arguments": arguments.to_string()});
            let call =
                json!({"index": 0, "id": "call_1", "type": "function", "function": function});
            (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
        }
        None => (json!({"role": "assistant", "content": MODEL_ANSWER}), "stop"),
    };
    let chunk = |delta: Value, reason: Value| {
        json!({
            "id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        })
    };
    vec![
        ("", chunk(delta, Value::Null)),
        ("", chunk(json!({}), json!(reason))),
        ("", json!("[DONE]")),
    ]
}

fn gemini(body: &Value, word: &str) -> Said {
    let declared: Vec<Value> = body["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|tool| tool["functionDeclarations"].as_array().cloned().unwrap_or_default())
        .collect();
    let done = body["contents"].to_string().contains("\"functionResponse\"");
    let tool = offered(&Value::Array(declared), &["run_shell_command"]).filter(|_| !done);
    let part = match tool {
        Some(name) => json!({"functionCall": {
            "name": name, "args": {"command": MODEL_COMMAND, "description": "write a file"}
        }}),
        // Its questions about which model to use want an object.
        None if body["generationConfig"].to_string().contains("Schema") => {
            let choice = json!({
                "reasoning": "x", "model_choice": "flash", "complexity_reasoning": "x",
                "complexity_score": 1, "next_speaker": "user"
            });
            json!({"text": choice.to_string()})
        }
        None => json!({"text": MODEL_ANSWER}),
    };
    let response = json!({
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
        "modelVersion": "model"
    });
    if word.contains(":stream") { events(vec![("", response)]) } else { data(&response) }
}

fn copilot_user() -> Value {
    json!({
        "login": "tester", "access_type_sku": "copilot_pro", "copilot_plan": "individual",
        "chat_enabled": true, "assigned_date": "2025-01-01", "organization_list": [],
        "endpoints": {"api": "https://api.githubcopilot.com"}
    })
}

fn copilot_models() -> Value {
    let model = |name: &str| {
        json!({
            "id": name, "name": name, "object": "model", "vendor": "Anthropic", "version": name,
            "preview": false, "model_picker_enabled": true, "policy": {"state": "enabled", "terms": ""},
            "billing": {"is_premium": false, "multiplier": 0},
            "supported_endpoints": ["/chat/completions"],
            "capabilities": {
                "family": name, "type": "chat", "object": "model_capabilities", "tokenizer": "o200k_base",
                "limits": {
                    "max_context_window_tokens": 128_000, "max_output_tokens": 16_000,
                    "max_prompt_tokens": 100_000
                },
                "supports": {"streaming": true, "tool_calls": true, "parallel_tool_calls": true}
            }
        })
    };
    json!({"object": "list", "data": [model("claude-sonnet-4.5"), model("gpt-4.1")]})
}

fn opencode_models() -> Value {
    let model = json!({
        "id": "claude-sonnet-4-5", "name": "Claude Sonnet", "attachment": true, "reasoning": false,
        "temperature": true, "tool_call": true, "release_date": "2025-01-01",
        "last_updated": "2025-01-01", "modalities": {"input": ["text"], "output": ["text"]},
        "open_weights": false, "cost": {"input": 1, "output": 1},
        "limit": {"context": 200_000, "output": 32_000}
    });
    json!({"anthropic": {
        "id": "anthropic", "env": ["ANTHROPIC_API_KEY"], "npm": "@ai-sdk/anthropic",
        "name": "Anthropic", "models": {"claude-sonnet-4-5": model}
    }})
}
