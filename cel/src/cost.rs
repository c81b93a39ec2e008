//! What an expression costs at most, from what a schema says of sizes (upstream: cel-go `checker/cost.go` with
//! `apiserver/pkg/cel/library/cost.go`). Which rules a definition may have depends on these numbers, so they are upstream's.

use crate::check::Compiled;
use crate::decl::{DeclType, Kind};
use crate::types::Type;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use std::collections::HashMap;
use std::sync::Arc;

/// Reading a text costs a tenth of a unit a character.
pub(crate) const STRING_FACTOR: f64 = 0.1;
/// A regular expression is guessed to have one state every four characters.
pub(crate) const REGEX_FACTOR: f64 = 0.25;
pub(crate) const LIST_COST: u64 = 10;
pub(crate) const MAP_COST: u64 = 30;
pub(crate) const STRUCT_COST: u64 = 40;
pub(crate) const CHECK_COST: u64 = 350_000;
pub(crate) const NAME_FORMAT_REGEX_SIZE: u64 = 128;
const FORMAT_SIZE: u64 = 64;

/// From the least to the most, of sizes and of costs. Nothing overflows: the most that can be told is the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    const ZERO: Self = Self::fixed(0);
    const ONE: Self = Self::fixed(1);
    const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    const fn fixed(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn add(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn by(self, factor: f64) -> Self {
        // A float that is too large becomes the largest integer.
        let one = |n: u64| (n as f64 * factor).ceil() as u64;
        Self { min: one(self.min), max: one(self.max) }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    fn text(self) -> Self {
        self.by(STRING_FACTOR)
    }
}

/// The cost of a call and the size of what it gives, where that is known.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    cost: Range,
    size: Option<Range>,
}

impl Compiled {
    /// What it costs. `root` is the type of the variables that a schema describes.
    pub fn estimate(&self, root: Option<&Arc<DeclType>>) -> Range {
        let mut coster = Coster {
            compiled: self,
            root,
            paths: HashMap::new(),
            sizes: HashMap::new(),
            entries: HashMap::new(),
            locals: Vec::new(),
        };
        coster.cost(&self.expr)
    }
}

/// Where in the declared types a value lies: nowhere, or somewhere, known or not.
type Place = Option<Option<Arc<DeclType>>>;

/// What is known of the elements of a list, or of the entries of a map.
#[derive(Clone, Copy)]
struct Entries {
    is_list: bool,
    key: Range,
    value: Range,
}

struct Local {
    name: String,
    place: Place,
    size: Option<Range>,
    entries: Option<Entries>,
}

struct Coster<'c> {
    compiled: &'c Compiled,
    root: Option<&'c Arc<DeclType>>,
    paths: HashMap<u64, Place>,
    sizes: HashMap<u64, Range>,
    entries: HashMap<u64, Entries>,
    locals: Vec<Local>,
}

/// An argument as the estimates of functions see it.
struct Node<'n> {
    expr: Option<&'n IdedExpr>,
    ty: Type,
    place: Place,
    size: Option<Range>,
}

impl<'c> Coster<'c> {
    fn ty(&self, expr: &IdedExpr) -> Type {
        self.compiled.types.get(expr.id as usize).cloned().unwrap_or(Type::Dyn)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn place(&self, expr: &IdedExpr) -> Place {
        if let Expr::Ident(name) = &expr.expr
            && let Some(local) = self.local(name)
        {
            return local.place.clone();
        }
        self.paths.get(&expr.id).cloned().flatten()
    }

    /// One step down. What lies nowhere is taken to begin at the root, as upstream drops the first step of every path.
    fn step(&self, place: Place, step: Step<'_>) -> Place {
        let Some(at) = place else { return Some(self.root.cloned()) };
        Some(at.and_then(|decl| match (&decl.kind, step) {
            (Kind::List { items, .. }, Step::Items) => Some(items.clone()),
            (Kind::Map(values), Step::Items) => Some(values.clone()),
            // The names of properties are texts of any length.
            (Kind::Map(_), Step::Keys) => {
                Some(Arc::new(DeclType { kind: Kind::Plain(Type::String), max_elements: 0, min_size: 0 }))
            }
            (Kind::Object { .. }, Step::Field(name)) => decl.field(name).cloned(),
            _ => None,
        }))
    }

    fn size_at(place: &Place) -> Option<Range> {
        place.as_ref()?.as_ref().map(|decl| Range { min: 0, max: decl.max_elements })
    }

    /// The size of a node's value, if anything is known of it.
    fn size(&mut self, expr: &IdedExpr) -> Option<Range> {
        if let Some(size) = self.sizes.get(&expr.id) {
            return Some(*size);
        }
        let said = match &expr.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner().chars().count()),
            Expr::Literal(LiteralValue::Bytes(bytes)) => Some(bytes.inner().len()),
            Expr::Literal(_) => Some(1),
            Expr::List(list) => Some(list.elements.len()),
            Expr::Map(map) => Some(map.entries.len()),
            _ => None,
        };
        if let Some(said) = said {
            return Some(Range::fixed(said as u64));
        }
        if let Some(size) = Self::size_at(&self.place(expr)) {
            self.sizes.insert(expr.id, size);
            return Some(size);
        }
        if is_scalar(&self.ty(expr)) {
            return Some(Range::ONE);
        }
        match &expr.expr {
            Expr::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &IdedExpr) -> Range {
        self.size(expr).unwrap_or(Range::UNKNOWN)
    }

    fn entries(&self, expr: &IdedExpr) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&expr.id) {
            return Some(*entries);
        }
        match &expr.expr {
            Expr::Ident(name) => self.local(name).and_then(|l| l.entries),
            _ => None,
        }
    }

    fn note_size(&mut self, expr: &IdedExpr, size: Option<Range>) {
        if let Some(size) = size {
            self.sizes.insert(expr.id, size);
        }
    }

    fn note_entries(&mut self, expr: &IdedExpr, entries: Option<Entries>) {
        if let Some(entries) = entries {
            self.entries.insert(expr.id, entries);
        }
    }

    fn cost(&mut self, expr: &IdedExpr) -> Range {
        match &expr.expr {
            Expr::Unspecified | Expr::Literal(_) => Range::ZERO,
            Expr::Ident(name) => {
                let place = match self.local(name) {
                    Some(local) => local.place.clone(),
                    None => Some(self.root.cloned()),
                };
                self.paths.insert(expr.id, place);
                Range::ONE
            }
            Expr::Select(select) => {
                let mut sum = self.cost(&select.operand);
                // Asking whether a field is there is free.
                if !select.test {
                    if matches!(self.ty(&select.operand), Type::Map(..) | Type::Object(_) | Type::Variable(_)) {
                        sum = sum.add(Range::ONE);
                    }
                    let place = self.step(self.place(&select.operand), Step::Field(&select.field));
                    self.paths.insert(expr.id, place);
                }
                sum
            }
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let mut sum = Range::fixed(LIST_COST);
                let mut of: Option<Range> = None;
                for element in &list.elements {
                    sum = sum.add(self.cost(element));
                    let size = self.size_or_unknown(element);
                    of = Some(of.map_or(size, |of| of.union(size)));
                }
                let entries = Entries { is_list: true, key: Range::ONE, value: of.unwrap_or(Range::ZERO) };
                self.note_entries(expr, Some(entries));
                sum
            }
            Expr::Map(map) => {
                let mut sum = Range::fixed(MAP_COST);
                let (mut keys, mut values): (Option<Range>, Option<Range>) = (None, None);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    let (key, value) = (self.size_or_unknown(&entry.key), self.size_or_unknown(&entry.value));
                    keys = Some(keys.map_or(key, |k| k.union(key)));
                    values = Some(values.map_or(value, |v| v.union(value)));
                }
                let (key, value) = (keys.unwrap_or(Range::ZERO), values.unwrap_or(Range::ZERO));
                self.note_entries(expr, Some(Entries { is_list: false, key, value }));
                sum
            }
            Expr::Struct(made) => {
                let mut sum = Range::fixed(STRUCT_COST);
                for entry in &made.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        sum = sum.add(self.cost(&field.value));
                    }
                }
                sum
            }
            Expr::Comprehension(comprehension) => self.comprehension(expr, comprehension),
        }
    }

    fn comprehension(&mut self, expr: &IdedExpr, c: &ComprehensionExpr) -> Range {
        let mut sum = self.cost(&c.iter_range).add(self.cost(&c.accu_init));
        let accumulator = Local {
            name: c.accu_var.clone(),
            place: self.place(&c.accu_init),
            size: self.size(&c.accu_init),
            entries: self.entries(&c.accu_init),
        };
        let outside = self.locals.len();
        self.locals.push(accumulator);
        // Binding a name is a comprehension that runs over nothing.
        let binds = matches!(&c.iter_range.expr, Expr::List(l) if l.elements.is_empty())
            && matches!(&c.loop_cond.expr, Expr::Literal(LiteralValue::Boolean(b)) if !*b.inner())
            && c.accu_var != "@result";
        if binds {
            sum = sum.add(self.cost(&c.result));
            self.locals.truncate(outside);
            let (size, entries) = (self.size(&c.result), self.entries(&c.result));
            self.note_size(expr, size);
            self.note_entries(expr, entries);
            return sum;
        }
        let entries = self.entries(&c.iter_range);
        let is_list = entries.map_or(matches!(self.ty(&c.iter_range), Type::List(_)), |e| e.is_list);
        let range = self.place(&c.iter_range);
        let introduce = |coster: &mut Self, name: &str, step: Step<'_>, size: Option<Range>| {
            let place = coster.step(range.clone(), step);
            coster.locals.push(Local { name: name.to_owned(), place, size, entries: None });
        };
        let (keys, values) = (entries.map(|e| e.key), entries.map(|e| e.value));
        match &c.iter_var2 {
            Some(second) => {
                introduce(self, &c.iter_var, if is_list { Step::Indices } else { Step::Keys }, keys);
                introduce(self, second, Step::Items, values);
            }
            None if is_list => introduce(self, &c.iter_var, Step::Items, values),
            None => introduce(self, &c.iter_var, Step::Keys, keys),
        }
        let each = self.cost(&c.loop_cond).add(self.cost(&c.loop_step));
        self.locals.truncate(outside + 1);
        sum = sum.add(self.cost(&c.result));
        self.locals.truncate(outside);
        let count = self.size_or_unknown(&c.iter_range);
        sum = sum.add(count.times(each));
        match &c.accu_init.expr {
            Expr::Literal(_) => {
                let size = self.size(&c.accu_init);
                self.note_size(expr, size);
            }
            Expr::List(_) | Expr::Map(_) => {
                self.note_size(expr, Some(count));
                let entries = self.entries(&c.loop_step);
                self.note_entries(expr, entries);
            }
            _ => {}
        }
        sum
    }

    fn node<'n>(&mut self, expr: &'n IdedExpr) -> Node<'n> {
        Node { expr: Some(expr), ty: self.ty(expr), place: self.place(expr), size: self.size(expr) }
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr) -> Range {
        if call.func_name == "dyn"
            && let [argument] = &call.args[..]
        {
            let cost = self.cost(argument).add(Range::ONE);
            let (size, entries) = (self.size(argument), self.entries(argument));
            self.note_size(expr, size);
            self.note_entries(expr, entries);
            return cost;
        }
        let costs: Vec<Range> = call.args.iter().map(|a| self.cost(a)).collect();
        let args: Vec<Node<'_>> = call.args.iter().map(|a| self.node(a)).collect();
        let overloads = self.compiled.overloads.get(expr.id as usize).cloned().unwrap_or_default();
        if overloads.is_empty() {
            return Range::ZERO;
        }
        let mut sum = Range::ZERO;
        let target = call.target.as_deref().map(|target| {
            sum = self.cost(target);
            self.node(target)
        });
        let mut most: Option<Range> = None;
        let mut size: Option<Range> = None;
        for overload in overloads {
            let found = self.function(expr, &call.func_name, overload, target.as_ref(), &args, &costs);
            most = Some(most.map_or(found.cost, |m| m.union(found.cost)));
            size = match (size, found.size) {
                (Some(a), Some(b)) => Some(a.union(b)),
                (a, b) => a.or(b),
            };
            let step = match overload {
                "index_list" | "index_map" => Some(Step::Items),
                _ => None,
            };
            if let (Some(step), Some(of)) = (step, call.args.first()) {
                size = self.entries(of).map(|e| e.value);
                let place = self.step(self.place(of), step);
                self.paths.insert(expr.id, place);
            }
            if size.is_none() {
                size = self.size(expr);
            }
        }
        self.note_size(expr, size);
        sum.add(most.unwrap_or(Range::ZERO))
    }

    fn function(
        &mut self,
        expr: &IdedExpr,
        function: &str,
        overload: &str,
        target: Option<&Node<'_>>,
        args: &[Node<'_>],
        costs: &[Range],
    ) -> Estimate {
        let of_args = costs.iter().fold(Range::ZERO, |sum, cost| sum.add(*cost));
        if let Some(found) = self.of_library(function, overload, target, args) {
            return Estimate { cost: found.cost.add(of_args), size: found.size };
        }
        let size = |node: &Node<'_>| node.size.unwrap_or(Range::UNKNOWN);
        let of = |cost: Range, size: Option<Range>| Estimate { cost: cost.add(of_args), size };
        match (overload, target, args) {
            ("string_format", Some(target), [list]) => {
                let (target, list) = (size(target), size(list));
                of(target.text(), Some(target.add(list)))
            }
            ("string_to_bytes", _, [a]) => {
                let size = size(a);
                of(size.text(), Some(Range { min: size.min, max: size.max.saturating_mul(4) }))
            }
            ("bytes_to_string", _, [a]) => {
                let size = size(a);
                of(size.text(), Some(Range { min: size.min / 4, max: size.max }))
            }
            ("strings_quote", _, [a]) => {
                let size = size(a);
                let max = size.max.saturating_mul(2).saturating_add(2);
                of(size.text(), Some(Range { min: size.min + 2, max }))
            }
            ("starts_with_string" | "ends_with_string", _, [a]) => of(size(a).text(), None),
            ("in_list", _, [_, list]) => of(size(list), None),
            ("matches_string", Some(target), [regex]) => {
                let text = size(target).add(Range::ONE).text();
                of(text.times(size(regex).by(REGEX_FACTOR)), None)
            }
            ("contains_string", Some(target), [a]) => of(size(target).text().times(size(a).text()), None),
            ("logical_or" | "logical_and", _, _) => {
                let (left, right) = (costs[0], costs[1]);
                Estimate { cost: Range { min: left.min, max: left.add(right).max }, size: None }
            }
            ("conditional", _, [_, yes, no]) => {
                let entries = |node: &Node<'_>| node.expr.and_then(|e| self.entries(e));
                let both = union_entries(entries(yes), entries(no));
                self.note_entries(expr, both);
                let cost = costs[0].add(costs[1].union(costs[2]));
                Estimate { cost, size: Some(size(yes).union(size(no))) }
            }
            ("add_string" | "add_bytes" | "add_list", _, [a, b]) => {
                let together = size(a).add(size(b));
                let entries = |node: &Node<'_>| node.expr.and_then(|e| self.entries(e));
                let both = union_entries(entries(a), entries(b));
                self.note_entries(expr, both);
                let cost = if overload == "add_list" { Range::ONE } else { together.text() };
                of(cost, Some(together))
            }
            (id, _, [a, b])
                if matches!(id, "equals" | "not_equals")
                    || (["less", "greater"].iter().any(|verb| id.starts_with(verb))
                        && (id.ends_with("_string") || id.ends_with("_bytes"))) =>
            {
                let max = size(a).max.min(size(b).max);
                of(Range { min: u64::from(max > 0), max }.text(), None)
            }
            _ => of(Range::ONE, None),
        }
    }

    /// What the libraries of Kubernetes say of their functions.
    fn of_library(
        &mut self,
        function: &str,
        overload: &str,
        target: Option<&Node<'_>>,
        args: &[Node<'_>],
    ) -> Option<Estimate> {
        let size = |node: &Node<'_>| node.size.unwrap_or(Range::UNKNOWN);
        let cost = |cost: Range| Some(Estimate { cost, size: None });
        let sized = |cost: Range, size: Range| Some(Estimate { cost, size: Some(size) });
        match (function, target, args) {
            ("check", ..) => cost(Range::fixed(CHECK_COST)),
            (
                "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "allowed"
                | "reason" | "error" | "errored",
                ..,
            ) => cost(Range::ONE),
            ("fieldSelector" | "labelSelector", _, [selector]) => cost(selector_cost(size(selector))),
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes", Some(target), _) => {
                let Type::List(of) = &target.ty else { return cost(size(target).text()) };
                let mut each = Range::ONE;
                if matches!(**of, Type::String | Type::Bytes) {
                    let place = self.step(target.place.clone(), Step::Items);
                    let known = target.place.as_ref().and(Self::size_at(&place));
                    each = each.add(known.unwrap_or(Range::UNKNOWN).text());
                }
                cost(size(target).times(each))
            }
            ("url" | "jsonpatch.escapeKey", _, [a]) => sized(size(a).text(), size(a)),
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(target), _) => {
                sized(size(target).text(), size(target))
            }
            ("replace", Some(target), [from, to, ..]) => {
                let target = size(target);
                sized(target.by(2.0 * STRING_FACTOR), replaced(target, size(from), size(to)))
            }
            ("split", Some(target), _) => {
                let target = size(target);
                let limit = args.get(1).and_then(|a| match &a.expr?.expr {
                    Expr::Literal(LiteralValue::Int(n)) => Some(*n.inner() as u64),
                    _ => None,
                });
                sized(target.by(2.0 * STRING_FACTOR), Range { min: 0, max: limit.unwrap_or(target.max) })
            }
            ("join", Some(target), _) => {
                let count = size(target);
                let place = self.step(target.place.clone(), Step::Items);
                let each = target.place.as_ref().and(Self::size_at(&place)).unwrap_or(Range::UNKNOWN);
                let mut whole = if matches!(target.ty, Type::List(_)) { count.times(each) } else { Range::ZERO };
                if let Some(separator) = args.first() {
                    let gaps = Range { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
                    whole = whole.add(size(separator).times(gaps));
                }
                sized(whole.text(), whole)
            }
            ("find" | "findAll", Some(target), [regex, ..]) => {
                let target = size(target);
                let regex = size(regex).by(REGEX_FACTOR);
                sized(target.add(Range::ONE).text().times(regex), Range { min: 0, max: target.max })
            }
            ("cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver", _, [a, ..]) => {
                cost(size(a).text())
            }
            ("ip", ..) if overload == "cidr_ip" => cost(Range::ONE),
            ("ip", _, [a]) => cost(size(a).text()),
            ("ip.isCanonical", _, [a]) => cost(size(a).by(2.0 * STRING_FACTOR)),
            ("containsIP" | "containsCIDR", _, [a]) => {
                let bytes = Range { min: 4, max: 16 };
                let mut sum = bytes.add(bytes).text();
                if function == "containsCIDR" {
                    sum = sum.add(bytes.text()).add(Range::ONE);
                }
                if overload.ends_with("_string") {
                    sum = sum.add(size(a).text());
                }
                cost(sum)
            }
            ("validate", _, [a]) => cost(size(a).text().by(NAME_FORMAT_REGEX_SIZE as f64 * REGEX_FACTOR)),
            (
                "masked"
                | "prefixLength"
                | "family"
                | "isUnspecified"
                | "isLoopback"
                | "isLinkLocalMulticast"
                | "isLinkLocalUnicast"
                | "isGlobalUnicast"
                | "format.named"
                | "sign"
                | "asInteger"
                | "isInteger"
                | "asApproximateFloat"
                | "isGreaterThan"
                | "isLessThan"
                | "compareTo"
                | "add"
                | "sub"
                | "major"
                | "minor"
                | "patch"
                | "getScheme"
                | "getHostname"
                | "getHost"
                | "getPort"
                | "getEscapedPath"
                | "getQuery",
                ..,
            ) => cost(Range::ONE),
            ("_==_", _, [a, b]) if a.ty.same(&b.ty) => match a.ty {
                Type::Named("kubernetes.NamedFormat") => cost(Range { min: 1, max: FORMAT_SIZE }.text()),
                Type::Named("kubernetes.URL") => {
                    let max = b.size.map_or(1, |s| s.max);
                    cost(Range { min: 1, max }.text())
                }
                Type::Named(_) => cost(Range::ONE),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A step down into a value.
#[derive(Clone, Copy)]
enum Step<'s> {
    Field(&'s str),
    /// The elements of a list or the values of a map.
    Items,
    Keys,
    Indices,
}

fn is_scalar(ty: &Type) -> bool {
    match ty {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(of) => is_scalar(of),
        _ => false,
    }
}

fn union_entries(a: Option<Entries>, b: Option<Entries>) -> Option<Entries> {
    let (a, b) = (a?, b?);
    Some(Entries { is_list: a.is_list, key: a.key.union(b.key), value: a.value.union(b.value) })
}

/// A selector is read, and its requirements are made: at best one every two characters.
pub(crate) fn selector_cost(length: Range) -> Range {
    let requirements = length.by(0.5).by((LIST_COST + STRUCT_COST) as f64);
    Range::fixed(LIST_COST).add(length.text()).add(requirements)
}

pub(crate) fn selector_cost_of(length: u64) -> u64 {
    selector_cost(Range::fixed(length)).max
}

/// How long a text is in which something was replaced.
fn replaced(text: Range, from: Range, to: Range) -> Range {
    let (most, most_kept) = if from.min == 0 {
        (text.max.saturating_add(1), text.max)
    } else if to.max <= from.min {
        (0, text.max)
    } else {
        (text.max.div_ceil(from.min), 0)
    };
    let (least, least_kept) = if from.max == 0 {
        (text.min.saturating_add(1), text.min)
    } else if from.max <= to.min {
        (0, text.min)
    } else {
        (text.min.div_ceil(from.max), 0)
    };
    Range { min: least, max: most }.times(to).add(Range { min: least_kept, max: most_kept })
}
