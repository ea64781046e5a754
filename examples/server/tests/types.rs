//! What a Rust client reads: the types of `async-openai` write our requests and read our answers.

mod common;

use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, ChatCompletionRequestUserMessage, ChatCompletionTool, ChatCompletionTools,
    CreateChatCompletionRequest, CreateChatCompletionResponse, CreateChatCompletionStreamResponse, FinishReason,
    FunctionObject, StopConfiguration,
};
use common::{Request, server, time_tool};

fn request(text: &str) -> CreateChatCompletionRequest {
    CreateChatCompletionRequest {
        messages: vec![ChatCompletionRequestUserMessage::from(text).into()],
        model: "qwen".into(),
        temperature: Some(0.0),
        max_completion_tokens: Some(40),
        ..Default::default()
    }
}

fn send(server: &common::Running, request: &CreateChatCompletionRequest) -> common::Response {
    server.send(&Request::post("/v1/chat/completions", serde_json::to_string(request).unwrap()))
}

#[test]
fn answers_have_the_types_of_the_protocol() {
    let server = server();
    let mut request = request("What is 3 + 4?");
    request.logprobs = Some(true);
    request.top_logprobs = Some(2);
    request.n = Some(2);
    request.stop = Some(StopConfiguration::StringArray(vec!["never".into()]));
    let answer: CreateChatCompletionResponse = serde_json::from_value(send(&server, &request).ok()).unwrap();
    assert_eq!(answer.choices.len(), 2);
    let choice = &answer.choices[0];
    assert_eq!((choice.finish_reason, choice.index), (Some(FinishReason::Stop), 0));
    let text = choice.message.content.clone().unwrap();
    let tokens = choice.logprobs.as_ref().and_then(|logprobs| logprobs.content.as_ref()).unwrap();
    assert_eq!(tokens.iter().map(|token| token.token.as_str()).collect::<String>(), text);
    assert!(tokens.iter().all(|token| token.top_logprobs.len() == 2 && token.logprob <= 0.0));
    let usage = answer.usage.unwrap();
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert!(usage.prompt_tokens_details.is_some());

    request.stream = Some(true);
    request.n = None;
    let chunks = send(&server, &request).events().into_iter();
    let chunks: Vec<CreateChatCompletionStreamResponse> =
        chunks.map(|chunk| serde_json::from_value(chunk).unwrap()).collect();
    let pieces = chunks.iter().filter_map(|chunk| chunk.choices[0].delta.content.as_deref());
    assert_eq!(pieces.collect::<String>(), text);
    assert_eq!(chunks.last().unwrap().choices[0].finish_reason, Some(FinishReason::Stop));
}

#[test]
fn calls_have_the_types_of_the_protocol() {
    let server = server();
    let mut request = request("Which time is it now in Cairo?");
    let function: FunctionObject = serde_json::from_value(time_tool()["function"].clone()).unwrap();
    request.tools = Some(vec![ChatCompletionTools::Function(ChatCompletionTool { function })]);
    let answer: CreateChatCompletionResponse = serde_json::from_value(send(&server, &request).ok()).unwrap();
    let choice = &answer.choices[0];
    assert_eq!(choice.finish_reason, Some(FinishReason::ToolCalls));
    let calls = choice.message.tool_calls.as_ref().unwrap();
    let ChatCompletionMessageToolCalls::Function(call) = &calls[0] else { panic!("{calls:?}") };
    assert_eq!((call.function.name.as_str(), call.function.arguments.as_str()), ("get_time", r#"{"city": "Cairo"}"#));

    request.stream = Some(true);
    let chunks = send(&server, &request).events().into_iter();
    let chunks = chunks.map(|chunk| serde_json::from_value::<CreateChatCompletionStreamResponse>(chunk).unwrap());
    let deltas: Vec<_> =
        chunks.flat_map(|chunk| chunk.choices[0].delta.tool_calls.clone().unwrap_or_default()).collect();
    let arguments = deltas.iter().filter_map(|delta| delta.function.as_ref()?.arguments.as_deref());
    assert_eq!(arguments.collect::<String>(), call.function.arguments);
    assert_eq!(deltas.iter().filter(|delta| delta.id.is_some()).count(), 1);
}
