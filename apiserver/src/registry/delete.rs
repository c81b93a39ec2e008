//! DELETE of one object and of a collection (upstream: `handlers/delete.go`, `rest.BeforeDelete`, `Store.Delete`).

use super::decode;
use super::metadata;
use super::options::DeleteOptions;
use super::pipeline::{ATTEMPTS_MAX, Call, Content, Pipeline, Reply};
use super::resource::{DeleteRule, Propagation};
use crate::admission::Operation;
use crate::store::{CommitError, Object};
use coxswain_api::{Status, Value, json, time};
use std::sync::Arc;

/// What becomes of an object that is to be deleted.
enum Verdict {
    /// It goes now.
    Now,
    /// It is marked and waits for its grace period or its finalizers; the tree is what is stored meanwhile.
    Marked { tree: Value, then_delete: bool },
    /// Its deletion is under way already and this request does not hasten it.
    Pending,
    /// Its deletion waits for others; the answer is the object.
    Wait,
}

/// The end of a deletion: what is answered.
pub(super) enum Deleted {
    /// The object as it was when it went, or as it is while it waits.
    Object(Value),
    /// The object is gone and its resource answers with a `Status`.
    Status(Value),
}

impl Pipeline {
    pub(super) async fn delete(&self, call: &Call) -> Result<Reply, Status> {
        let options = decode::delete_options(call)?;
        warn_of_open_propagation(call, &options);
        let (deleted, gone) = self.delete_object(call, call.name(), &options).await?;
        // Asked to wait for dependents by the old flag: accepted, not done.
        let code = if !gone && options.orphan_dependents == Some(false) { 202 } else { 200 };
        let content = match deleted {
            Deleted::Object(tree) => Content::Hub(tree),
            Deleted::Status(status) => Content::Tree(status),
        };
        Ok(Reply { code, content })
    }

    /// Says also whether the object is gone.
    pub(super) async fn delete_object(
        &self,
        call: &Call,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Deleted, bool), Status> {
        let store = call.store();
        let strategy = call.strategy();
        let mut current = store.get(call.namespace(), name).await?;
        let mut options = options.clone();
        // What this request has marked. Whoever saw the mark may finish the deletion first, as a kubelet does with a pod that
        // runs no more; then this request has got what it asked for.
        let mut marked: Option<Arc<Object>> = None;
        for _ in 0..ATTEMPTS_MAX {
            let object = match (&current, &marked) {
                (Some(object), None) => object,
                (Some(object), Some(marked)) if is_same(object, marked) => object,
                (_, Some(marked)) => return Ok((finished(call, marked.to_tree()), true)),
                (None, None) => return Err(call.not_found(name)),
            };
            let old = object.tree();
            check_preconditions(call, name, &options, &old)?;
            let verdict = self.judge(call, &mut options, &old)?;
            match verdict {
                Verdict::Pending => return Ok((finished(call, (*old).clone()), false)),
                Verdict::Wait => return Ok((Deleted::Object((*old).clone()), false)),
                _ => {}
            }
            self.admit(call, Operation::Delete, &options.object, name, None, Some(&old)).await?;
            self.validate_admission(call, Operation::Delete, &options.object, name, None, Some(&old)).await?;
            let result = match verdict {
                Verdict::Marked { tree, .. } if options.dry_run => Ok((Deleted::Object(tree), false)),
                _ if options.dry_run => Ok((finished(call, (*old).clone()), true)),
                // Nothing new: the deletion goes on as it was.
                Verdict::Marked { tree, then_delete: false } if tree == *old => Ok((Deleted::Object(tree), false)),
                Verdict::Marked { tree, then_delete } => match store.update(object, &tree, strategy.ttl(&tree)).await {
                    Ok(stored) if then_delete => match self.commit_delete(call, &stored).await {
                        Ok(last) => Ok((finished(call, last.to_tree()), true)),
                        Err(e) => {
                            marked = Some(stored);
                            Err(e)
                        }
                    },
                    Ok(stored) => Ok((Deleted::Object(stored.to_tree()), false)),
                    Err(e) => Err(e),
                },
                _ => self.commit_delete(call, object).await.map(|last| (finished(call, last.to_tree()), true)),
            };
            match result {
                Ok(done) => return Ok(done),
                Err(CommitError::Conflict(now)) => current = now,
                Err(CommitError::Refused(status)) => return Err(status),
            }
        }
        Err(Status::modified(call.group(), call.plural(), name))
    }

    /// Commits the end of an object and does what must follow it.
    pub(super) async fn commit_delete(&self, call: &Call, object: &Arc<Object>) -> Result<Arc<Object>, CommitError> {
        let last = call.store().delete(object).await?;
        if let Some(hooks) = call.strategy().hooks() {
            hooks.after_delete(self, call, &last.tree()).await;
        }
        Ok(last)
    }

    /// Grace period and finalizers (upstream: `BeforeDelete`, `deletionFinalizersForGarbageCollection`, `markAsDeleting`).
    fn judge(&self, call: &Call, options: &mut DeleteOptions, old: &Value) -> Result<Verdict, Status> {
        let strategy = call.strategy();
        let now = call.ctx.now;
        let mut tree = old.clone();
        if options.grace_period_seconds.is_some_and(|s| s < 0) {
            options.grace_period_seconds = Some(1);
        }
        let mut graceful = false;
        let mut grace_seconds = 0;
        let rule = strategy.delete_rule(&call.ctx, &mut tree);
        if rule == DeleteRule::Wait {
            return Ok(Verdict::Wait);
        }
        if strategy.is_graceful() && metadata::is_deleting(old) {
            let left = metadata::number(old, "deletionGracePeriodSeconds").unwrap_or(0).max(-1);
            let left = if left < 0 { 1 } else { left };
            if left != 0 {
                match options.grace_period_seconds {
                    Some(asked) if asked < left => {
                        // A shorter grace period moves the deadline forward, but never into the past.
                        let deadline = time::parse(metadata::text(old, "deletionTimestamp")).unwrap_or(now);
                        let mut sooner = deadline - jiff::SignedDuration::from_secs(left - asked);
                        let mut period = asked;
                        if sooner < now {
                            sooner = now;
                            period = if asked == 0 { 0 } else { 1 };
                        }
                        metadata::set(&mut tree, "deletionTimestamp", time::format_seconds(sooner));
                        metadata::set(&mut tree, "deletionGracePeriodSeconds", period);
                        graceful = true;
                        grace_seconds = asked;
                    }
                    Some(_) => return Ok(Verdict::Pending),
                    None => {
                        options.grace_period_seconds = Some(left);
                        return Ok(Verdict::Pending);
                    }
                }
            }
        } else if let Some(seconds) = strategy.grace_period_seconds(old, options.grace_period_seconds) {
            options.grace_period_seconds = Some(seconds);
            let deadline = now + jiff::SignedDuration::from_secs(seconds);
            metadata::set(&mut tree, "deletionTimestamp", time::format_seconds(deadline));
            metadata::set(&mut tree, "deletionGracePeriodSeconds", seconds);
            raise_generation(&mut tree, old);
            graceful = true;
            grace_seconds = seconds;
        }

        let before = metadata::finalizers(old);
        let after = finalizers_for_propagation(
            strategy.garbage_collected(),
            strategy.default_propagation(old),
            options,
            &before,
        );
        let pending_finalizers = !after.is_empty();
        if after != before {
            if after.is_empty() {
                metadata::remove(&mut tree, "finalizers");
            } else {
                metadata::set(&mut tree, "finalizers", json!(after));
            }
        }
        if rule == DeleteRule::Mark {
            return Ok(Verdict::Marked { tree, then_delete: false });
        }
        if graceful {
            return Ok(Verdict::Marked { tree, then_delete: !pending_finalizers && grace_seconds <= 0 });
        }
        if pending_finalizers {
            raise_generation(&mut tree, old);
            let present = time::parse(metadata::text(old, "deletionTimestamp"));
            if present.is_none_or(|t| t > now) {
                metadata::set(&mut tree, "deletionTimestamp", time::format_seconds(now));
            }
            metadata::set(&mut tree, "deletionGracePeriodSeconds", 0);
            return Ok(Verdict::Marked { tree, then_delete: false });
        }
        Ok(Verdict::Now)
    }

    pub(super) async fn delete_collection(&self, call: &Call) -> Result<Reply, Status> {
        let list = crate::list::ListOptions::of_query(&call.query, &call.ctx.info, &call.served)?;
        let options = decode::delete_options(call)?;
        warn_of_open_propagation(call, &options);
        let page = crate::list::page(call.store(), &list).await?;
        for object in &page.objects {
            // A collection over all namespaces deletes each object in its own.
            let mut one = call.clone();
            if call.ty().namespaced && call.namespace().is_empty() {
                let mut info = (*call.ctx.info).clone();
                info.namespace = object.namespace().to_owned();
                one.ctx.info = Arc::new(info);
            }
            match self.delete_object(&one, object.name(), &options).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
        let crate::list::Page { objects, meta } = page;
        Ok(Reply::ok(Content::List { objects, revision: meta.revision, next: meta.continue_token }))
    }
}

/// Whether both are one object, and not two of the same name.
fn is_same(object: &Object, other: &Object) -> bool {
    metadata::text(&object.tree(), "uid") == metadata::text(&other.tree(), "uid")
}

/// Deletion counts as a change of what is wanted.
fn raise_generation(tree: &mut Value, old: &Value) {
    let generation = metadata::number(old, "generation").unwrap_or(0);
    if !metadata::is_deleting(old) && generation > 0 {
        metadata::set(tree, "generation", generation + 1);
    }
}

fn warn_of_open_propagation(call: &Call, options: &DeleteOptions) {
    let open = options.propagation_policy.is_none() && options.orphan_dependents.is_none();
    if let Some(warning) = call.strategy().open_propagation_warning().filter(|_| open) {
        call.ctx.warnings.add(warning);
    }
}

fn check_preconditions(call: &Call, name: &str, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    let kind = &call.hub().kind;
    let group = &call.hub().group_version.group;
    let conflict = |why: String| Err(Status::conflict(group, kind, name, &why));
    let (uid, version) = (metadata::text(old, "uid"), metadata::text(old, "resourceVersion"));
    if let Some(wanted) = options.uid.as_deref().filter(|w| *w != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been \
             deleted and then recreated"
        ));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|w| *w != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). \
             The object might have been modified"
        ));
    }
    Ok(())
}

/// The finalizers of an object being deleted: `orphan` and `foregroundDeletion` come and go with the propagation policy.
fn finalizers_for_propagation(
    collected: bool,
    default: Propagation,
    options: &DeleteOptions,
    before: &[String],
) -> Vec<String> {
    if !collected {
        return before.to_vec();
    }
    let own = |name: &str| name == "orphan" || name == "foregroundDeletion";
    let policy = options.propagation_policy.as_deref();
    let wish = match (options.orphan_dependents, policy) {
        (Some(true), _) | (None, Some("Orphan")) => Some("orphan"),
        (None, Some("Foreground")) => Some("foregroundDeletion"),
        (Some(false), _) | (None, Some(_)) => None,
        // Nothing asked for: what an earlier deletion asked for, else the custom of the resource.
        (None, None) => match before.iter().find(|f| own(f)).map(String::as_str) {
            Some("orphan") => Some("orphan"),
            Some(_) => Some("foregroundDeletion"),
            None => (default == Propagation::Orphan).then_some("orphan"),
        },
    };
    let mut after: Vec<String> = before.iter().filter(|f| !own(f)).cloned().collect();
    after.extend(wish.map(str::to_owned));
    let same = after.len() == before.len() && after.iter().all(|f| before.contains(f));
    if same { before.to_vec() } else { after }
}

/// What is answered when an object is gone (upstream: `finalizeDelete`).
fn finished(call: &Call, object: Value) -> Deleted {
    if call.strategy().returns_deleted_object() {
        return Deleted::Object(object);
    }
    let mut details =
        json!({"name": metadata::text(&object, "name"), "kind": call.plural(), "uid": metadata::text(&object, "uid")});
    if !call.group().is_empty() {
        details["group"] = call.group().into();
    }
    Deleted::Status(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_propagation_policy_decides_the_finalizers() {
        let after = |policy: Option<&str>, before: &[&str], default| {
            let options = DeleteOptions { propagation_policy: policy.map(str::to_owned), ..DeleteOptions::default() };
            let before: Vec<String> = before.iter().map(|f| f.to_string()).collect();
            finalizers_for_propagation(true, default, &options, &before).join(",")
        };
        assert_eq!(after(None, &["a/b"], Propagation::Background), "a/b");
        assert_eq!(after(None, &[], Propagation::Orphan), "orphan");
        assert_eq!(after(Some("Background"), &["orphan", "a/b"], Propagation::Orphan), "a/b");
        assert_eq!(after(Some("Foreground"), &["a/b"], Propagation::Orphan), "a/b,foregroundDeletion");
        assert_eq!(after(None, &["foregroundDeletion"], Propagation::Orphan), "foregroundDeletion");
    }
}
