//! What must hold for any input, one target for each decoder, patch and parser of what others send.
//!
//! A target is a function of bytes that panics when a law is broken. Three things drive it: `dev/fuzz.sh` (libFuzzer, guided
//! by coverage, for as long as one likes), `fuzz/tests/short_draw.rs` (a few seconds of mutations in every test run), and
//! the inputs that were found once and must never fail again (`fuzz/corpus/TARGET/*`).

mod codecs;
#[cfg(any(feature = "server", feature = "kubelet"))]
mod frames;
#[cfg(feature = "server")]
mod objects;
mod patches;
#[cfg(feature = "server")]
mod requests;
mod schemas;
mod source;
mod texts;

/// One law, or a few that belong together.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs to begin with: mutation finds its way from these sooner than from nothing.
    pub seeds: &'static [&'static [u8]],
}

macro_rules! target {
    ($module:ident :: $name:ident, $seeds:expr) => {
        Target { name: stringify!($name), run: $module::$name, seeds: $seeds }
    };
}

/// All targets, by name.
pub static TARGETS: &[Target] = &[
    #[cfg(feature = "server")]
    target!(requests::cel, &[b"object.spec.replicas <= 5 && self.items.all(x, x.name.startsWith('a') || x.n in [1, 2u, 3.5])"]),
    target!(codecs::cbor_decode, &[b"\xd9\xd9\xf7\xa2\x44kind\x43Pod\x48metadata\xa1\x44name\x41a"]),
    target!(codecs::every_encoding, &[b"\x01\x02\x03\x04\x05\x06\x07\x08some bytes to make a tree of"]),
    target!(texts::field_paths, &[br#"{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}},"v:1":{},"i:0":{}}}}"#]),
    target!(codecs::json_decode, &[br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","ports":[{"containerPort":80}]}]}}"#]),
    target!(patches::json_patch, &[b"\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"]),
    target!(patches::json_patch_text, &[br#"{"a":{"b":[1,2]}}|[{"op":"add","path":"/a/b/-","value":4},{"op":"move","from":"/a","path":"/c"}]"#]),
    target!(patches::merge_patch, &[b"\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"]),
    #[cfg(feature = "server")]
    target!(objects::object_rules, &[b"\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"]),
    target!(codecs::protobuf_decode, &[b"\x00k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x0f\x0a\x0d\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0", b"\x01\x0a\x0d\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0"]),
    target!(texts::quantity, &[b"1.5Gi", b"12e-3", b"-0.5m", b"9223372036854775807Ei"]),
    #[cfg(feature = "server")]
    target!(requests::request_texts, &[b"\x00eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0", b"\x01application/json;as=Table;v=v1;g=meta.k8s.io;q=0.5, */*", b"\x02*/5 1-4 * JAN-MAR,9 @every 1h", b"\x03.spec.list[?(@.name==\"a\")].x['b']", b"\x04limit=5&labelSelector=a%3Db&dryRun=All"]),
    target!(texts::selectors, &[b"a in (b,c),!d,e!=f,g notin (h),i>5", b"metadata.name=a\\,b,spec.nodeName!=c"]),
    target!(patches::server_side_apply, &[b"\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"]),
    #[cfg(feature = "kubelet")]
    target!(frames::spdy_frames, &[b"\x00\x00\x00\x01\x00\x00\x00\x03abc\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01\x80\x03\x00\x07\x00\x00\x00\x00"]),
    #[cfg(feature = "server")]
    target!(frames::storage_records, &[b"\x01\x02\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0value"]),
    target!(patches::strategic_merge_patch, &[b"\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"]),
    target!(schemas::structural_schema, &[br#"{"type":"object","properties":{"spec":{"type":"object","properties":{"n":{"type":"integer","default":1,"x-kubernetes-validations":[{"rule":"self > 0"}]},"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["k"],"items":{"type":"object","required":["k"],"properties":{"k":{"type":"string","pattern":"^a+$"}}}}}}}}|{"spec":{"n":2,"l":[{"k":"a"}],"x":1}}"#]),
    target!(texts::times, &[b"2001-02-03T04:05:06.789+01:00", b"1h5m0.5s"]),
    #[cfg(feature = "kubelet")]
    target!(frames::websocket_channels, &[b"\x01\x00abc", b"\x010YQ=="]),
    target!(codecs::yaml_decode, &[b"kind: Pod\nmetadata: &a {name: x, labels: {a: 'b'}}\nspec:\n  containers:\n  - name: \"c\"\n    args: [1, 0x1f, ~, .5, yes]\n  x: *a\n"]),
];

/// By name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}
