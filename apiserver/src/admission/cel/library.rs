//! What Kubernetes adds to CEL's own functions (upstream: `apiserver/pkg/cel/library`): tests of texts, and quantities.

use cel::common::types::{CelBool, CelString};
use cel::extractors::This;
use cel::objects::Opaque;
use cel::{Context, DeclarationError, Env, ExecutionError, Value};
use coxswain_api::quantity::Quantity;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

/// Adds the functions that take and give plain values.
pub(super) fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_overload!(env, fn is_ip: (CelString) -> CelBool, name = "isIP")?;
    cel::add_overload!(env, fn is_cidr: (CelString) -> CelBool, name = "isCIDR")?;
    cel::add_overload!(env, fn is_quantity: (CelString) -> CelBool, name = "isQuantity")?;
    cel::add_overload!(env, fn is_url: (CelString) -> CelBool, name = "isURL")?;
    Ok(())
}

/// An address in the form that is unambiguous: neither with a zone nor an IPv4 address mapped to IPv6.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        other => Some(other),
    }
}

fn is_ip(text: &CelString<'_>) -> CelBool {
    address(text.inner()).is_some().into()
}

fn is_cidr(text: &CelString<'_>) -> CelBool {
    let valid = text.inner().split_once('/').is_some_and(|(base, length)| {
        let Some(base) = address(base) else { return false };
        let plain = length == "0" || (!length.starts_with('0') && length.bytes().all(|b| b.is_ascii_digit()));
        let most = if base.is_ipv4() { 32 } else { 128 };
        plain && length.parse::<u32>().is_ok_and(|n| n <= most)
    });
    valid.into()
}

fn is_quantity(text: &CelString<'_>) -> CelBool {
    Quantity::parse(text.inner()).is_ok().into()
}

/// Upstream asks Go's `ParseRequestURI`: a path, or a scheme with what follows.
fn is_url(text: &CelString<'_>) -> CelBool {
    let text = text.inner();
    let clean = text.bytes().all(|b| b > b' ' && b != 0x7f);
    let has_scheme = text.split_once(':').is_some_and(|(scheme, rest)| {
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(letters) && rest.starts_with('/')
    });
    (clean && (text.starts_with('/') || has_scheme)).into()
}

/// A quantity as a value of CEL.
#[derive(Clone, Debug)]
struct Amount(Quantity);

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Equal
    }
}

impl Eq for Amount {}

impl Opaque for Amount {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.Quantity"
    }
}

impl Amount {
    fn order(&self, other: &Self) -> Ordering {
        let mut difference = self.0.clone();
        difference.sub(&other.0);
        difference.sign().cmp(&0)
    }

    fn into_value(self) -> Value {
        Value::Opaque(Arc::new(self))
    }
}

fn failed(function: &str, message: impl ToString) -> ExecutionError {
    ExecutionError::function_error(function, message.to_string())
}

fn amount(value: &Value, function: &str) -> Result<Amount, ExecutionError> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<Amount>().cloned(),
        Value::Int(n) => Some(Amount(Quantity::new(*n, coxswain_api::quantity::Format::DecimalSi))),
        _ => None,
    }
    .ok_or_else(|| failed(function, "no such overload"))
}

/// Adds the functions of quantities, if the expression makes one.
pub(super) fn add_quantities(expression: &str, context: &mut Context<'_, '_>) -> Result<(), DeclarationError> {
    if !expression.contains("quantity(") {
        return Ok(());
    }
    context.add_function("quantity", |text: Arc<String>| {
        Quantity::parse(&text).map(|q| Amount(q).into_value()).map_err(|e| failed("quantity", e))
    })?;
    context.add_function("isLessThan", |This(a): This<Value>, b: Value| {
        Ok::<_, ExecutionError>(amount(&a, "isLessThan")?.order(&amount(&b, "isLessThan")?).is_lt())
    })?;
    context.add_function("isGreaterThan", |This(a): This<Value>, b: Value| {
        Ok::<_, ExecutionError>(amount(&a, "isGreaterThan")?.order(&amount(&b, "isGreaterThan")?).is_gt())
    })?;
    context.add_function("compareTo", |This(a): This<Value>, b: Value| {
        Ok::<_, ExecutionError>(amount(&a, "compareTo")?.order(&amount(&b, "compareTo")?) as i64)
    })?;
    context.add_function("sign", |This(a): This<Value>| {
        Ok::<_, ExecutionError>(i64::from(amount(&a, "sign")?.0.sign()))
    })?;
    context.add_function("asApproximateFloat", |This(a): This<Value>| {
        Ok::<_, ExecutionError>(amount(&a, "asApproximateFloat")?.0.as_f64())
    })?;
    context.add_function("asInteger", |This(a): This<Value>| {
        Ok::<_, ExecutionError>(amount(&a, "asInteger")?.0.value())
    })?;
    context.add_function("add", |This(a): This<Value>, b: Value| {
        let mut sum = amount(&a, "add")?;
        sum.0.add(&amount(&b, "add")?.0);
        Ok::<_, ExecutionError>(sum.into_value())
    })?;
    context.add_function("sub", |This(a): This<Value>, b: Value| {
        let mut difference = amount(&a, "sub")?;
        difference.0.sub(&amount(&b, "sub")?.0);
        Ok::<_, ExecutionError>(difference.into_value())
    })
}

#[cfg(test)]
mod tests {
    use crate::admission::cel::Variables;

    #[test]
    fn the_functions_of_kubernetes_are_there() {
        for holds in [
            "isIP('10.0.0.1') && isIP('::1') && !isIP('010.0.0.1') && !isIP('::ffff:1.2.3.4')",
            "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0')",
            "isURL('https://a.b/c') && isURL('/x') && !isURL('a b') && !isURL('a')",
            "isQuantity('5Gi') && !isQuantity('5GiB')",
            "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('1').isLessThan(quantity('1500m'))",
            "quantity('1').add(quantity('1000m')) == quantity('2') && quantity('3').sub(1).asInteger() == 2",
            "quantity('1').compareTo(quantity('1000m')) == 0 && quantity('-1').sign() == -1",
        ] {
            assert_eq!(Variables::new().is_true(holds), Ok(true), "{holds}");
        }
    }
}
