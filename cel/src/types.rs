//! The types of expressions, how they are told, and which fits where (upstream: cel-go `common/types` and `checker/types.go`).

use crate::decl::DeclType;
use std::fmt;
use std::sync::Arc;

/// A type. Variables stand for what an overload or an empty list leaves open.
#[derive(Clone, Debug)]
pub enum Type {
    /// Of something wrong that was told of already; fits everywhere.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    /// The type of types.
    Meta(Arc<Type>),
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// An object with the fields of its schema.
    Object(Arc<DeclType>),
    /// A type of a library, by its name.
    Named(&'static str),
    Variable(u32),
}

impl Type {
    pub fn list(of: Type) -> Self {
        Type::List(Arc::new(of))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(of: Type) -> Self {
        Type::Optional(Arc::new(of))
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// The same type, variables by their number.
    pub(crate) fn same(&self, other: &Type) -> bool {
        use Type::*;
        match (self, other) {
            (Error, Error) | (Dyn, Dyn) | (Null, Null) | (Bool, Bool) | (Int, Int) | (Uint, Uint) => true,
            (Double, Double) | (String, String) | (Bytes, Bytes) => true,
            (Timestamp, Timestamp) | (Duration, Duration) => true,
            (Meta(a), Meta(b)) | (List(a), List(b)) | (Optional(a), Optional(b)) => a.same(b),
            (Map(a, x), Map(b, y)) => a.same(b) && x.same(y),
            (Object(a), Object(b)) => Arc::ptr_eq(a, b) || a.is_same_object(b),
            (Named(a), Named(b)) => a == b,
            (Variable(a), Variable(b)) => a == b,
            _ => false,
        }
    }

    /// Whether nothing that is `other` is not also `self`.
    fn is_equal_or_less_specific(&self, other: &Type) -> bool {
        use Type::*;
        match (self, other) {
            (Dyn | Variable(_), _) => true,
            (_, Dyn | Variable(_)) => false,
            (List(a), List(b)) | (Optional(a), Optional(b)) => a.is_equal_or_less_specific(b),
            (Map(a, x), Map(b, y)) => a.is_equal_or_less_specific(b) && x.is_equal_or_less_specific(y),
            (Meta(_), Meta(_)) => true,
            _ => self.same(other),
        }
    }

    fn mentions(&self, variable: u32, known: &Substitutions) -> bool {
        match self {
            Type::Variable(v) if *v == variable => true,
            Type::Variable(v) => known.get(*v).is_some_and(|t| t.mentions(variable, known)),
            Type::Meta(t) | Type::List(t) | Type::Optional(t) => t.mentions(variable, known),
            Type::Map(k, v) => k.mentions(variable, known) || v.mentions(variable, known),
            _ => false,
        }
    }

    /// Every variable renamed.
    pub(crate) fn shifted(&self, by: u32) -> Type {
        match self {
            Type::Variable(v) => Type::Variable(v + by),
            Type::Meta(t) => Type::Meta(Arc::new(t.shifted(by))),
            Type::List(t) => Type::list(t.shifted(by)),
            Type::Optional(t) => Type::optional(t.shifted(by)),
            Type::Map(k, v) => Type::map(k.shifted(by), v.shifted(by)),
            other => other.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Error => f.write_str("!error!"),
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::Meta(t) => write!(f, "type({t})"),
            Type::List(t) => write!(f, "list({t})"),
            Type::Map(k, v) => write!(f, "map({k}, {v})"),
            Type::Optional(t) => write!(f, "optional_type({t})"),
            Type::Object(decl) => f.write_str(decl.name()),
            Type::Named(name) => f.write_str(name),
            Type::Variable(v) => write!(f, "_var{v}"),
        }
    }
}

/// What is known of the variables so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Substitutions(Vec<Option<Type>>);

impl Substitutions {
    fn get(&self, variable: u32) -> Option<&Type> {
        self.0.get(variable as usize)?.as_ref()
    }

    fn set(&mut self, variable: u32, ty: Type) {
        let at = variable as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        self.0[at] = Some(ty);
    }

    /// A type with its variables replaced; those that nothing is known of stay, or become `dyn`.
    pub(crate) fn apply(&self, ty: &Type, open_to_dyn: bool) -> Type {
        match ty {
            Type::Variable(v) => match self.get(*v) {
                Some(known) => self.apply(known, open_to_dyn),
                None if open_to_dyn => Type::Dyn,
                None => ty.clone(),
            },
            Type::Meta(t) => Type::Meta(Arc::new(self.apply(t, open_to_dyn))),
            Type::List(t) => Type::list(self.apply(t, open_to_dyn)),
            Type::Optional(t) => Type::optional(self.apply(t, open_to_dyn)),
            Type::Map(k, v) => Type::map(self.apply(k, open_to_dyn), self.apply(v, open_to_dyn)),
            other => other.clone(),
        }
    }

    /// Whether all of `given` may stand where `wanted` is asked for. What is learnt on the way is kept only if they may.
    pub(crate) fn assign_all(&mut self, given: &[Type], wanted: &[Type]) -> bool {
        if given.len() != wanted.len() {
            return false;
        }
        let before = self.clone();
        let fits = given.iter().zip(wanted).all(|(g, w)| self.unify(g, w));
        if !fits {
            *self = before;
        }
        fits
    }

    pub(crate) fn assign(&mut self, to: &Type, from: &Type) -> bool {
        self.assign_all(std::slice::from_ref(to), std::slice::from_ref(from))
    }

    fn unify(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Variable(v) = b {
            let (valid, known) = self.substitute(a, *v);
            if valid || known {
                return valid;
            }
        }
        if let Type::Variable(v) = a {
            return self.substitute(b, *v).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        let nullable = |t: &Type| {
            use Type::*;
            matches!(t, Null | Object(_) | Named(_) | Optional(_) | Timestamp | Duration)
        };
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::Meta(_), Type::Meta(_)) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.unify(a, b),
            (Type::Map(a, x), Type::Map(b, y)) => self.unify(a, b) && self.unify(x, y),
            _ => a.same(b),
        }
    }

    /// Whether a type may stand for a variable, and whether something was known of that already.
    fn substitute(&mut self, ty: &Type, variable: u32) -> (bool, bool) {
        if matches!(ty, Type::Variable(v) if *v == variable) {
            return (true, true);
        }
        if let Some(known) = self.get(variable).cloned() {
            if ty.same(&known) {
                return (true, true);
            }
            if !self.unify(ty, &known) {
                return (false, true);
            }
            let general = if ty.is_equal_or_less_specific(&known) { ty.clone() } else { known };
            if !general.mentions(variable, self) {
                self.set(variable, general);
            }
            return (true, true);
        }
        if ty.mentions(variable, self) {
            return (false, false);
        }
        self.set(variable, ty.clone());
        (true, false)
    }
}

/// Of two types that fit together the one that says less.
pub(crate) fn most_general(a: Type, b: Type) -> Type {
    if a.is_equal_or_less_specific(&b) { a } else { b }
}
