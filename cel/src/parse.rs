//! From text to a syntax tree: the parser of the `cel` crate, with the macros that Kubernetes adds, and its complaints as cel-go
//! prints them.

use cel::Env;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, SourceInfo, operators,
};
use cel::parser::{Macro, MacroExprHelper, ParseError};
use std::sync::LazyLock;

/// The function that `transformMap` and its like expand to; it cannot be written in an expression.
pub(crate) const MAP_INSERT: &str = "cel.@mapInsert";

const ACCUMULATOR: &str = "@result";

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    env.add_extension(cel::extensions::lists).expect("a fresh environment has no lists yet");
    for (name, arguments, kind) in [
        ("all", 3, TwoVariables::All),
        ("exists", 3, TwoVariables::Exists),
        ("existsOne", 3, TwoVariables::ExistsOne),
        ("exists_one", 3, TwoVariables::ExistsOne),
        ("transformList", 3, TwoVariables::List),
        ("transformList", 4, TwoVariables::List),
        ("transformMap", 3, TwoVariables::Map),
        ("transformMap", 4, TwoVariables::Map),
        ("transformMapEntry", 3, TwoVariables::Entry),
        ("transformMapEntry", 4, TwoVariables::Entry),
    ] {
        let expand = move |helper: &mut MacroExprHelper<'_>,
                           target: &mut Option<IdedExpr>,
                           args: &mut Vec<IdedExpr>| { two_variables(helper, target, args, kind) };
        env.add_macro(Macro::receiver(name, arguments, expand)).expect("no other macro has so many arguments");
    }
    env
});

/// Reads an expression. The error is what cel-go would print.
pub(crate) fn parse(source: &str) -> Result<(IdedExpr, SourceInfo), String> {
    ENV.parser().parse_with_source_info(source).map_err(|errors| {
        // Where there is nothing at all, there is no place to point to either.
        if source.is_empty() {
            let why = errors.errors.first().map(|e| e.msg.clone()).unwrap_or_default();
            return format!("ERROR: <input>:1:0: {why}");
        }
        let mut told: Vec<String> = errors.errors.iter().map(|e| told(e, source)).collect();
        told.dedup();
        told.join("\n")
    })
}

fn told(error: &ParseError, source: &str) -> String {
    let (line, column) = error.pos;
    // The end of the text is told as being before its beginning.
    let (line, column) = if line <= 0 || column <= 0 { end_of(source) } else { (line as usize, column as usize) };
    pointed_at(&error.msg, source, line, column)
}

fn end_of(source: &str) -> (usize, usize) {
    let line = source.matches('\n').count() + 1;
    (line, source.lines().last().unwrap_or_default().chars().count() + 1)
}

/// An error with its place, both counted from 1, and a caret under it.
pub(crate) fn pointed_at(why: &str, source: &str, line: usize, column: usize) -> String {
    let text = source.split('\n').nth(line - 1).unwrap_or_default();
    format!("ERROR: <input>:{line}:{column}: {why}\n | {text}\n | {}^", ".".repeat(column - 1))
}

/// Line and column of a byte, both counted from 1.
pub(crate) fn position(source: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    let before = &source[..at];
    let line = before.matches('\n').count() + 1;
    (line, before.chars().rev().take_while(|c| *c != '\n').count() + 1)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TwoVariables {
    All,
    Exists,
    ExistsOne,
    List,
    Map,
    Entry,
}

/// `target.all(key, value, predicate)` and its like (upstream: `ext.TwoVarComprehensions`).
fn two_variables(
    helper: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    kind: TwoVariables,
) -> Result<Option<IdedExpr>, ParseError> {
    let name = |expr: &IdedExpr, helper: &MacroExprHelper<'_>| match &expr.expr {
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err(helper.new_error(expr.id, "argument must be a simple variable name")),
    };
    let (first, second) = (name(&args[0], helper)?, name(&args[1], helper)?);
    if first == second {
        return Err(helper.new_error(args[1].id, format!("duplicate variable name: {second}")));
    }
    let said = args.pop().unwrap_or_default();
    let filter = (args.len() == 3).then(|| args.pop().unwrap_or_default());

    let literal = |helper: &mut MacroExprHelper<'_>, value: LiteralValue| helper.next_expr(Expr::Literal(value));
    let accu = |helper: &mut MacroExprHelper<'_>| helper.next_expr(Expr::Ident(ACCUMULATOR.into()));
    let call = |helper: &mut MacroExprHelper<'_>, name: &str, args: Vec<IdedExpr>| {
        helper.next_expr(Expr::Call(CallExpr { func_name: name.into(), target: None, args }))
    };
    let init = match kind {
        TwoVariables::All => literal(helper, LiteralValue::Boolean(true.into())),
        TwoVariables::Exists => literal(helper, LiteralValue::Boolean(false.into())),
        TwoVariables::ExistsOne => literal(helper, LiteralValue::Int(0.into())),
        TwoVariables::List => helper.next_expr(Expr::List(ListExpr::default())),
        TwoVariables::Map | TwoVariables::Entry => helper.next_expr(Expr::Map(MapExpr::default())),
    };
    let seen = accu(helper);
    let condition = match kind {
        TwoVariables::All => call(helper, operators::NOT_STRICTLY_FALSE, vec![seen]),
        TwoVariables::Exists => {
            let not = call(helper, operators::LOGICAL_NOT, vec![seen]);
            call(helper, operators::NOT_STRICTLY_FALSE, vec![not])
        }
        _ => literal(helper, LiteralValue::Boolean(true.into())),
    };
    let seen = accu(helper);
    let step = match kind {
        TwoVariables::All => call(helper, operators::LOGICAL_AND, vec![seen, said]),
        TwoVariables::Exists => call(helper, operators::LOGICAL_OR, vec![seen, said]),
        TwoVariables::ExistsOne => {
            let one = literal(helper, LiteralValue::Int(1.into()));
            let more = call(helper, operators::ADD, vec![seen, one]);
            let same = accu(helper);
            call(helper, operators::CONDITIONAL, vec![said, more, same])
        }
        TwoVariables::List => {
            let one = helper.next_expr(Expr::List(ListExpr::new(vec![said])));
            call(helper, operators::ADD, vec![seen, one])
        }
        TwoVariables::Map => {
            let key = helper.next_expr(Expr::Ident(first.clone()));
            call(helper, MAP_INSERT, vec![seen, key, said])
        }
        TwoVariables::Entry => call(helper, MAP_INSERT, vec![seen, said]),
    };
    let step = match filter {
        None => step,
        Some(filter) => {
            let same = accu(helper);
            call(helper, operators::CONDITIONAL, vec![filter, step, same])
        }
    };
    let seen = accu(helper);
    let result = match kind {
        TwoVariables::ExistsOne => {
            let one = literal(helper, LiteralValue::Int(1.into()));
            call(helper, operators::EQUALS, vec![seen, one])
        }
        _ => seen,
    };
    Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: target.take().unwrap_or_default(),
        iter_var: first,
        iter_var2: Some(second),
        accu_var: ACCUMULATOR.into(),
        accu_init: init,
        loop_cond: condition,
        loop_step: step,
        result,
    })))))
}
