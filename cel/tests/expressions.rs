//! Expressions from outside: what they give, what is wrong with them, what they cost.

use coxswain_api::structural::Structural;
use coxswain_cel::{CALL_COST_MAX, DeclType, Env, Type, Value, compile, evaluate};
use serde_json::{Value as Json, json};

/// The value of an expression without variables, as a tree, or the error.
fn value(source: &str) -> Result<Json, String> {
    let compiled = compile(&Env::default(), source).map_err(|e| e.to_string())?;
    let outcome = evaluate(&compiled, &Bound(Vec::new()), CALL_COST_MAX);
    outcome.value.and_then(|v| v.to_tree()).map_err(|e| e.to_string())
}

struct Bound<'a>(Vec<(&'static str, Value<'a>)>);

impl<'a> coxswain_cel::Bindings<'a> for Bound<'a> {
    fn variable(&self, name: &str) -> Option<Value<'a>> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }
}

#[test]
fn what_holds() {
    for source in [
        "'%s %s'.format([['a', 1.5], {'k': b'x'}]) == '[\"a\", 1.500000] {\"k\":b\"x\"}'",
        "'%f %.1f %e'.format([1234567.5, -1000.25, 0.00015]) == '1,234,567.500000 -1,000.2 1.500000×10⁻⁰⁴'",
        "string(1e21) == '1e+21' && string(123456789.5) == '1.234567895e+08' && duration('1500ms').getMilliseconds() == 1500",
        "'hello'.indexOf('l', 9) == -1 && 'a{,2}'.matches('^a{,2}$') && sign(quantity('-1')) == -1",
        "1 + 2 * 3 == 7 && 7 / 2 == 3 && -7 % 3 == -1",
        "1 < 1.5 && 2u > 1 && dyn(1) == dyn(1.0) && 'a' < 'b'",
        "[1, 2, 3].all(x, x > 0) && [1, 2].exists(x, x == 2) && [1, 2].exists_one(x, x == 1)",
        "[1, 2, 3].map(x, x * 2) == [2, 4, 6] && [1, 2, 3].filter(x, x > 1) == [2, 3]",
        "{'a': 1, 'b': 2}.map(k, k) == ['a', 'b'] && 'a' in {'a': 1} && 2 in [1, 2]",
        "has({'a': 1}.a) && !has({'a': 1}.b) && {'a': {'b': 1}}.?a.?b.orValue(0) == 1",
        "optional.of(1).optMap(x, x + 1).orValue(0) == 2 && optional.none().orValue(3) == 3",
        "[1, 2, 3].all(i, v, v == i + 1) && {'a': 1}.exists(k, v, k == 'a' && v == 1)",
        "[1, 2].transformList(i, v, v + i) == [1, 3] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
        "'%s is %d years, %.2f m, %x'.format([dyn('Bo'), 7, 1.256, 255]) == 'Bo is 7 years, 1.26 m, ff'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'abc'.substring(1, 2) == 'b'",
        "'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3 && 'tacocat'.charAt(3) == 'o'",
        "'abc 123 def 456'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "'x'.matches('^[a-z]$') && 'ABC'.lowerAscii() == 'abc' && ' a '.trim() == 'a' && 'aXb'.replace('X', '-') == 'a-b'",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
        "[3, 1, 2].sort() == [1, 2, 3] && ['b', 'a'].min() == 'a' && [1, 2].sum() == 3 && [1, 2].isSorted()",
        "[{'n': 2}, {'n': 1}].sortBy(e, e.n)[0].n == 1",
        "url('https://u@example.com:8080/a b?x=1&x=2#f').getHostname() == 'example.com'",
        "url('https://example.com:80/a%20b?x=1&x=2').getQuery()['x'] == ['1', '2'] && url('/p').getHost() == ''",
        "isURL('https://a.b/c') && isURL('/x') && !isURL('a') && !isURL('')",
        "ip('192.168.0.1').family() == 4 && ip('::1').isLoopback() && !isIP('010.0.0.1') && !isIP('::ffff:1.2.3.4')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('192.168.1.5/24').masked() == cidr('192.168.1.0/24') && cidr('::/0').prefixLength() == 0",
        "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && string(ip('::1')) == '::1' && ip.isCanonical('::1')",
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('1').add(1).sub(quantity('1')).asInteger() == 1",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2 && !isSemver('v1.0.0')",
        "semver('1.0.0-alpha.1').compareTo(semver('1.0.0')) == -1",
        "format.dns1123Label().validate('A').hasValue() && !format.named('dns1123Label').value().validate('a').hasValue()",
        "duration('1h30m').getMinutes() == 90 && timestamp('2024-02-29T01:02:03Z').getMonth() == 1",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "type(1) == int && type('a') == string && type([1]) == list && type(null) == null_type",
        "string(1) == '1' && int('2') == 2 && double(1) == 1.0 && string(duration('90s')) == '90s' && bool('true')",
        "false && 1 / 0 > 0 || true || 1 / 0 > 0",
        "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
        "[[1], [2, 3]].flatten() == [1, 2, 3] && [1, 1, 2].distinct() == [1, 2] && [1, 2].reverse() == [2, 1]",
        "lists.range(3) == [0, 1, 2] && [1, 2].first().value() == 1 && [0, 1, 2, 3].slice(1, 3) == [1, 2]",
    ] {
        assert_eq!(value(source), Ok(json!(true)), "{source}");
    }
}

#[test]
fn what_fails_when_it_runs_says_why() {
    for (source, why) in [
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("{'a': 1}['b'] == 1", "no such key: b"),
        ("[1][3] == 1", "index out of bounds: 3"),
        ("dyn('a') + 1 == 1", "no such overload"),
        ("dyn([1]).contains('1')", "no such overload: contains(list)"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("'a'.substring(2) == ''", "index out of range: 2"),
        ("int('x') == 1", "type conversion error from 'string' to 'int'"),
    ] {
        assert_eq!(value(source), Err(why.to_owned()), "{source}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let none = "ERROR: <input>:1:";
    for (source, why) in [
        ("foo.bar", "1: undeclared reference to 'foo' (in container '')\n | foo.bar\n | ^"),
        ("1 + 'a' == 2", "3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a' == 2\n | ..^"),
        ("'a'.nope()", "9: undeclared reference to 'nope' (in container '')\n | 'a'.nope()\n | ........^"),
        (
            "'a'.contains(1)",
            "13: found no matching overload for 'contains' applied to 'string.(int)'\n | 'a'.contains(1)\n | ............^",
        ),
        ("[1, 'a']", "5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        ("(1).a", "4: type 'int' does not support field selection\n | (1).a\n | ...^"),
        (
            "1.all(x, x)",
            "1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | 1.all(x, x)\n | ^",
        ),
        ("duration('x')", "10: invalid duration argument\n | duration('x')\n | .........^"),
        ("'a'.matches('[')", "13: invalid matches argument\n | 'a'.matches('[')\n | ............^"),
    ] {
        let found = compile(&Env::default(), source).map(|c| c.result().to_string()).map_err(|e| e.to_string());
        assert_eq!(found, Err(format!("{none}{why}")), "{source}");
    }
}

fn schema(schema: Json) -> std::sync::Arc<DeclType> {
    DeclType::of_schema(&Structural::parse(&schema), false).expect("a schema that rules can see")
}

fn env(decl: &std::sync::Arc<DeclType>) -> Env {
    Env { variables: vec![("self", decl.ty()), ("oldSelf", decl.ty())], constructs: false }
}

#[test]
fn fields_are_those_of_the_schema() {
    let decl = schema(json!({"type": "object", "properties": {
        "n": {"type": "integer"}, "a-b": {"type": "string"}, "at": {"type": "string", "format": "date-time"},
        "l": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}, "any": {"x-kubernetes-int-or-string": true},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}}}}));
    let env = env(&decl);
    let told = |source: &str| compile(&env, source).map(|c| c.result().to_string()).map_err(|e| e.to_string());
    assert_eq!(told("self.n + self.m.x"), Ok("int".into()));
    assert_eq!(told("self.l"), Ok("list(string)".into()));
    assert_eq!(told("self.any == 1 || self.any == 'x'"), Ok("bool".into()));
    assert_eq!(told("self.zz == 1"), Err("ERROR: <input>:1:5: undefined field 'zz'\n | self.zz == 1\n | ....^".into()));
    assert_eq!(
        told("self.n == 'a'"),
        Err("ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.n == 'a'\n | .......^".into())
    );
    let object = json!({"n": 3, "a-b": "x", "at": "2024-01-01T00:00:00Z", "l": ["b", "a"], "m": {"x": 1}, "hidden": 1});
    for holds in [
        "self.n == 3 && self.a__dash__b == 'x' && self.at.getFullYear() == 2024",
        "self.l == ['b', 'a'] && self.l + ['a'] == ['b', 'a'] && self.m.x == 1 && has(self.m.x) && !has(self.m.y)",
        "self == oldSelf && size(self.m) == 1 && self.m.all(k, k == 'x') && self.m.exists(k, v, v == 1)",
    ] {
        let compiled = compile(&env, holds).unwrap_or_else(|e| panic!("{holds}: {e}"));
        let bound = Bound(vec![("self", Value::of(&object, &decl)), ("oldSelf", Value::of(&object, &decl))]);
        let value = evaluate(&compiled, &bound, CALL_COST_MAX).value;
        assert!(matches!(value, Ok(Value::Bool(true))), "{holds}: {value:?}");
    }
}

#[test]
fn costs_follow_from_the_sizes_of_the_schema() {
    let text = |max: i64| json!({"type": "string", "maxLength": max});
    let decl = schema(json!({"type": "object", "properties": {
        "s": text(10), "n": {"type": "integer"}, "free": {"type": "string"},
        "l": {"type": "array", "maxItems": 5, "items": text(10)}, "open": {"type": "array", "items": {"type": "string"}}}}));
    let cost = |source: &str| compile(&env(&decl), source).unwrap().estimate(Some(&decl)).max;
    assert_eq!(cost("true"), 0);
    assert_eq!(cost("self.n == 1"), 2);
    assert_eq!(cost("self.n > 1"), 3);
    // Forty bytes are ten characters of four bytes.
    assert_eq!(cost("self.s == 'abc'"), 3);
    assert_eq!(cost("self.s.contains('abc')"), 2 + 4);
    // Of each element: the condition 2, the accumulator 1, the name 1, the comparison of one character 1.
    assert_eq!(cost("self.l.all(x, x == 'a')"), 2 + 5 * (2 + 1 + 1 + 1) + 1);
    assert_eq!(cost("has(self.s)"), 1);
    assert!(cost("self.open.all(x, self.open.all(y, x == y))") > 1_000_000_000);
    assert_eq!(cost("self.free.startsWith('ab')"), 3);
}

#[test]
fn what_runs_too_long_is_stopped() {
    let numbers: Vec<i64> = (0..2000).collect();
    let object = json!({ "l": numbers });
    let env = Env { variables: vec![("object", Type::Dyn)], constructs: false };
    let compiled = compile(&env, "object.l.all(x, object.l.all(y, x + y >= 0))").unwrap();
    let bound = Bound(vec![("object", Value::untyped(&object))]);
    let outcome = evaluate(&compiled, &bound, CALL_COST_MAX);
    let error = outcome.value.unwrap_err();
    assert!(error.is_over_limit);
    assert_eq!(error.to_string(), "operation cancelled: actual cost limit exceeded");
    assert!(outcome.cost >= CALL_COST_MAX && outcome.cost < CALL_COST_MAX + 1000);
}
