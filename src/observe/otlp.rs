//! Spans as the OpenTelemetry protocol has them.

use std::sync::OnceLock;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self, ResourceSpans, ScopeSpans, Status};
use prost::Message;

use super::trace::{Attribute, Finished, Kind, Span};

/// `Content-Type` of [`encode`].
pub const CONTENT_TYPE: &str = "application/x-protobuf";
/// Which conventions the names of attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK` and `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: it is known whether the parent is of
/// another process, and it is.
const PARENT_KNOWN: u32 = 0x100;
const PARENT_REMOTE: u32 = 0x200;

/// The body of an export request.
pub fn encode(service_name: &str, traces: &[Finished]) -> Vec<u8> {
    let spans = traces.iter().flat_map(|trace| trace.spans.iter().map(|span| convert(trace, span))).collect();
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    let resource = Resource {
        attributes: vec![
            text("service.name", service_name),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", instance()),
        ],
        ..Default::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.into() }],
            schema_url: SCHEMA.into(),
        }],
    };
    request.encode_to_vec()
}

/// How many spans the collector would not have, and why; `None` of an answer that says nothing of it.
pub fn rejected(answer: &[u8]) -> Option<(usize, String)> {
    let partial = ExportTraceServiceResponse::decode(answer).ok()?.partial_success?;
    let spans = usize::try_from(partial.rejected_spans).ok().filter(|spans| *spans > 0)?;
    Some((spans, partial.error_message))
}

/// A name for this process among others of the service (`service.instance.id`: a random UUID).
fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| uuid::Uuid::new_v4().to_string())
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }),
        ..Default::default()
    }
}

fn convert(trace: &Finished, span: &Span) -> v1::Span {
    let mut attributes: Vec<_> = span
        .attributes
        .iter()
        .map(|(key, value)| match value {
            Attribute::Text(value) => text(key, value),
            Attribute::Number(number) => KeyValue {
                key: (*key).into(),
                value: Some(AnyValue { value: Some(Value::IntValue(*number)) }),
                ..Default::default()
            },
        })
        .collect();
    attributes.extend(span.error.as_ref().map(|error| text("error.type", error)));
    let remote = if span.kind == Kind::Server && span.parent.is_some() { PARENT_REMOTE } else { 0 };
    v1::Span {
        trace_id: trace.trace_id.to_vec(),
        span_id: span.id.to_vec(),
        trace_state: trace.state.clone().unwrap_or_default(),
        parent_span_id: span.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        flags: u32::from(trace.flags) | PARENT_KNOWN | remote,
        name: span.name.to_string(),
        kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        }
        .into(),
        start_time_unix_nano: trace.unix_nanos(span.start),
        end_time_unix_nano: trace.unix_nanos(span.end),
        attributes,
        status: span.error.as_ref().map(|_| Status { message: String::new(), code: StatusCode::Error.into() }),
        ..Default::default()
    }
}
