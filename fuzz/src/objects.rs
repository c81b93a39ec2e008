//! The rules of every resource: defaults, preparation, validation, columns, conversion. No object makes them panic.

use crate::source::Source;
use coxswain_api::catalogue::{self, GroupVersion, ResourceType};
use coxswain_api::codec::json;
use coxswain_api::{Value, conversion, defaults};
use coxswain_apiserver::registry::{builtin, metadata};
use coxswain_apiserver::request::{Context, RequestInfo, User, Warnings};
use std::sync::{Arc, LazyLock};

static RESOURCES: LazyLock<Vec<Arc<ResourceType>>> =
    LazyLock::new(|| catalogue::builtin().resources().cloned().collect());

pub(crate) fn context() -> Context {
    Context {
        user: Arc::new(User { name: "someone".into(), ..User::default() }),
        info: Arc::new(RequestInfo { verb: "create".into(), ..RequestInfo::default() }),
        dry_run: false,
        field_manager: "fuzz".into(),
        now: jiff::Timestamp::from_second(1_000_000_000).expect("a time of this age"),
        warnings: Warnings::default(),
    }
}

/// A decoded object with its defaults.
fn object(source: &mut Source<'_>, ty: &ResourceType) -> Option<Value> {
    let tree = source.object(&ty.group_version.api_version(), &ty.kind, &ty.schema);
    let mut object = json::decode_tree(&tree, &ty.schema).ok()?.value;
    defaults::apply(&mut object, &ty.schema);
    Some(object)
}

pub(crate) fn object_rules(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let at = source.below(RESOURCES.len());
    let ty = &RESOURCES[at];
    let (Some(new), Some(old)) = (object(&mut source, ty), object(&mut source, ty)) else { return };
    let hub = GroupVersion { group: ty.storage_group.clone(), version: ty.storage_version.clone() };
    let [mut new, mut old] = [new, old].map(|mut object| {
        conversion::convert(&mut object, &hub);
        object
    });
    let ctx = context();
    let strategy = builtin::strategy(&hub.group, &ty.plural);
    strategy.set_defaults(&mut old);
    strategy.set_defaults(&mut new);
    let once = new.clone();
    strategy.set_defaults(&mut new);
    assert_eq!(new, once, "defaults change something the second time");

    let mut created = new.clone();
    metadata::fill_system_fields(&mut created, ctx.now);
    strategy.prepare_for_create(&ctx, &mut created);
    let _ = metadata::validate_for(&*strategy, &created, ty.namespaced);
    let errors = strategy.validate(&ctx, &created);
    let _ = strategy.warnings(&ctx, &created, None);
    if errors.is_empty() {
        strategy.canonicalize(&mut created);
    }
    let names = strategy.columns().len();
    assert_eq!(strategy.cells(&created, ctx.now).len(), names, "a row has a cell for every column");
    let _ = strategy.selectable_fields(&created);
    for subresource in ["", "status"] {
        let mut updated = new.clone();
        strategy.prepare_for_update(&ctx, &mut updated, &old, subresource);
        let _ = metadata::validate_update(&updated, &old);
        let _ = strategy.validate_update(&ctx, &updated, &old, subresource);
        let _ = strategy.warnings(&ctx, &updated, Some(&old));
        strategy.reset_for_status(&mut updated, &old);
    }
    let _ = strategy.delete_rule(&ctx, &mut old);
}
