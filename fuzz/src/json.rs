//! Changes to JSON that leave it JSON.

use serde_json::{Number, Value};

use crate::{
    random::Random,
    text::{NUMBERS, kernel},
};

/// Changes a place or three of `content`; false when it is not an object or list.
pub fn mutate(content: &mut Vec<u8>, random: &mut Random) -> bool {
    let Ok(mut value) = serde_json::from_slice::<Value>(content) else { return false };
    // Plain numbers are JSON, too, but nothing to work on.
    if !value.is_object() && !value.is_array() {
        return false;
    }
    for _ in 0..=random.below(3) * random.below(2) {
        let count = nodes(&value);
        let other = nth(&mut value, &mut random.below(count)).cloned().unwrap_or(Value::Null);
        // Another kind of value is refused at once: most often it stays the same.
        let keep_kind = random.below(8) != 0;
        if let Some(place) = nth(&mut value, &mut random.below(count)) {
            change(place, other, keep_kind, random);
        }
    }
    *content = value.to_string().into_bytes();
    true
}

/// Another number or word, a value of elsewhere, something taken away or doubled.
fn change(place: &mut Value, other: Value, keep_kind: bool, random: &mut Random) {
    match place {
        Value::Number(number) if keep_kind => {
            let (old, by) = (number.as_i64().unwrap_or(0), random.below(9) as i64 - 4);
            let new = match random.below(4) {
                0 => NUMBERS[random.below(NUMBERS.len())],
                1 => old.saturating_add(by),
                2 => other.as_i64().unwrap_or(old / 2),
                _ => random.below(64) as i64,
            };
            *place = Value::Number(Number::from(new));
        }
        Value::Bool(value) if keep_kind => *value = !*value,
        Value::String(text) if keep_kind => match other {
            Value::String(other) => *text = other,
            _ => *text = kernel(random).to_owned(),
        },
        Value::Array(items) if keep_kind && !items.is_empty() => {
            let (at, from) = (random.below(items.len()), random.below(items.len()));
            match random.below(3) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[from].clone()),
                _ => items.swap(at, from),
            }
        }
        Value::Object(fields) if keep_kind && !fields.is_empty() => {
            let mut keys: Vec<_> = fields.keys().cloned().collect();
            let (key, from) = (keys.swap_remove(random.below(keys.len())), random.pick(&keys));
            match from.and_then(|from| fields.get(from)).cloned() {
                Some(value) if random.below(4) == 0 => drop(fields.insert(key, value)),
                _ => drop(fields.remove(&key)),
            }
        }
        _ => *place = other,
    }
}

/// Number of values in `value`, itself included.
pub fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(fields) => fields.values().map(nodes).sum(),
        _ => 0,
    }
}

/// The value at `n`, when they are counted off in order.
pub fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, n)),
        _ => None,
    }
}
