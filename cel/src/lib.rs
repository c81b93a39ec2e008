//! The Common Expression Language as Kubernetes has it (upstream: `cel-go` with `apiserver/pkg/cel`).
//!
//! The `cel` crate reads an expression; everything after that is here, because Kubernetes promises more than an evaluator: every
//! expression is checked against types when it is written, what it can cost at most is estimated from the sizes that a schema
//! allows, and what it does cost is counted when it runs. The way of an expression:
//!
//! ```text
//! text → syntax tree (parse) → types and overloads (check) → a Program → its worst cost (cost), or its value (eval)
//! ```
//!
//! Values borrow the trees they are read from; nothing is copied to ask an expression about an object. No I/O: who decides what
//! an authorizer answers is passed in.

mod check;
mod cost;
mod decl;
mod eval;
mod functions;
mod library;
mod parse;
mod types;
mod value;

pub use check::{Compiled, Env, Issue, compile};
pub use cost::{Estimate, Range};
pub use decl::{DeclType, MAX_REQUEST_BYTES, escape};
pub use eval::{Bindings, CALL_COST_MAX, Error, Outcome, evaluate};
pub use library::authorizer::{AccessRequest, Authorizer, Decision};
pub use types::Type;
pub use value::{Key, Value};
