//! In which form an answer is sent (upstream: `apiserver/pkg/endpoints/handlers/negotiation`).

use crate::registry::options::Query;
use coxswain_api::Status;
use coxswain_api::features::Feature;
use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
    /// Where `CBORServingAndStorage` is on.
    Cbor,
}

impl Media {
    pub fn content_type(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
            Media::Cbor => "application/cbor",
        }
    }

    /// What a stream of such documents is called.
    pub fn stream_type(self) -> &'static str {
        match self {
            Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            // RFC 8742
            Media::Cbor => "application/cbor-seq",
            media => media.content_type(),
        }
    }
}

/// Which part of the object is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// A `meta.k8s.io` Table, version `v1` or `v1beta1`.
    Table(&'static str),
    /// `PartialObjectMetadata`, or its list where a list is asked for.
    Partial(&'static str),
    PartialList(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub media: Media,
    pub shape: Shape,
    pub pretty: bool,
}

impl Accepted {
    /// What is sent when nothing was negotiated.
    pub const JSON: Accepted = Accepted { media: Media::Json, shape: Shape::Object, pretty: false };
}

/// Media types in the order in which upstream offers them.
const KNOWN: [(Media, &str); 4] =
    [(Media::Json, "json"), (Media::Yaml, "yaml"), (Media::Protobuf, "vnd.kubernetes.protobuf"), (Media::Cbor, "cbor")];

/// Those that this server offers.
fn offered() -> &'static [(Media, &'static str)] {
    if Feature::CBORServingAndStorage.enabled() { &KNOWN } else { &KNOWN[..3] }
}

/// Reads `Accept`. `custom`: custom resources have no protobuf form.
pub fn accept(headers: &HeaderMap, query: &Query, custom: bool) -> Result<Accepted, Status> {
    let header = accept_header(headers);
    let pretty = pretty(headers, query);
    if header.trim().is_empty() {
        return Ok(Accepted { pretty, ..Accepted::JSON });
    }
    // The router refuses a type that the route never produces, before it is served. It knows no other wildcard than the
    // widest, and custom resources do without it.
    let is_produced = |text: &str| text == "*/*" || offered().iter().any(|(media, _)| media.content_type() == text);
    if !custom && !header.split(',').any(|c| is_produced(c.split(';').next().unwrap_or_default().trim())) {
        return Err(not_produced());
    }
    let mut clauses: Vec<Clause<'_>> = header.split(',').filter_map(Clause::parse).collect();
    // Stable: equal weights keep the client's order.
    clauses.sort_by(|a, b| b.q.total_cmp(&a.q));
    for clause in &clauses {
        for (media, subtype) in offered().iter().filter(|(media, _)| !custom || *media != Media::Protobuf) {
            let fits = match (clause.main, clause.sub) {
                ("*", "*") | ("application", "*") => true,
                ("application", sub) => sub == *subtype,
                _ => false,
            };
            if let Some(shape) = clause.shape(*media).filter(|_| fits) {
                return Ok(Accepted { media: *media, shape, pretty: pretty || clause.pretty() });
            }
        }
    }
    // Upstream tells of every type that there is, also where custom resources do without one.
    let message = format!("only the following media types are accepted: {}", names());
    Err(Status::new(406, "NotAcceptable", message))
}

fn names() -> String {
    offered().iter().map(|(media, _)| media.content_type()).collect::<Vec<_>>().join(", ")
}

fn not_produced() -> Status {
    let message = format!("406: Not Acceptable\n\nAvailable representations: {}", names());
    Status::new(406, "NotAcceptable", message).with_details(Default::default())
}

/// A list can be watched as well, which the router's refusal says.
pub fn with_streams(mut status: Status) -> Status {
    if status.code == 406 && status.message.starts_with("406: ") {
        status.message.push_str(", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch");
        if Feature::CBORServingAndStorage.enabled() {
            status.message.push_str(", application/cbor-seq");
        }
    }
    status
}

/// `Accept`, of several headers the first as Go reads it.
pub fn accept_header(headers: &HeaderMap) -> &str {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Indented for people: on request, and for the tools that people use by hand.
fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(asked) = query.first("pretty").filter(|p| !p.is_empty()) {
        return matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    agent.starts_with("curl") || agent.starts_with("Wget") || agent.starts_with("Mozilla/5.0")
}

/// One alternative of an Accept header.
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut pieces = text.split(';').map(str::trim);
        let (main, sub) = pieces.next()?.split_once('/').unwrap_or(("*", "*"));
        let mut clause = Clause { main: main.trim(), sub: sub.trim(), params: Vec::new(), q: 1.0 };
        for piece in pieces {
            let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
            if name == "q" {
                clause.q = value.parse().unwrap_or(1.0);
            } else {
                clause.params.push((name, value));
            }
        }
        Some(clause)
    }

    fn param(&self, name: &str) -> &'a str {
        self.params.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }

    fn pretty(&self) -> bool {
        self.param("pretty") == "1"
    }

    /// None if this conversion is not offered in that media type.
    fn shape(&self, media: Media) -> Option<Shape> {
        let kind = self.param("as");
        if kind.is_empty() {
            return Some(Shape::Object);
        }
        let version = match (self.param("g"), self.param("v")) {
            ("meta.k8s.io", "v1") => "meta.k8s.io/v1",
            ("meta.k8s.io", "v1beta1") => "meta.k8s.io/v1beta1",
            _ => return None,
        };
        match kind {
            "Table" => (media != Media::Protobuf).then_some(Shape::Table(version)),
            "PartialObjectMetadata" => Some(Shape::Partial(version)),
            "PartialObjectMetadataList" => Some(Shape::PartialList(version)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept_value: &str) -> Result<(Media, Shape), String> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept_value.parse().unwrap());
        accept(&headers, &Query::default(), false).map(|a| (a.media, a.shape)).map_err(|s| s.message)
    }

    #[test]
    fn the_first_alternative_that_can_be_made_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(of(table), Ok((Media::Json, Shape::Table("meta.k8s.io/v1"))));
        assert_eq!(of("application/json;q=0.5, application/yaml"), Ok((Media::Yaml, Shape::Object)));
        assert_eq!(
            of("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, */*"),
            Ok((Media::Json, Shape::Object))
        );
        assert!(of("text/csv").unwrap_err().starts_with("406: Not Acceptable"));
        assert!(of("application/json;as=Foo;v=v1;g=meta.k8s.io").unwrap_err().starts_with("only the following"));
    }
}
