//! Changes to JSON that leave it JSON.

use serde_json::{Number, Value};

use crate::{
    random::Random,
    text::{NUMBERS, word},
};

/// Changes a place or three of `content`; false when it is no object or list.
pub fn mutate(content: &mut Vec<u8>, random: &mut Random) -> bool {
    let Ok(mut value) = serde_json::from_slice::<Value>(content) else { return false };
    // Plain numbers are JSON, too, but nothing to work on.
    if !value.is_object() && !value.is_array() {
        return false;
    }
    for _ in 0..=random.below(3) {
        let count = nodes(&value);
        let other = nth(&mut value, &mut random.below(count)).cloned().unwrap_or(Value::Null);
        if let Some(place) = nth(&mut value, &mut random.below(count)) {
            change(place, other, random);
        }
    }
    *content = value.to_string().into_bytes();
    true
}

/// Another number or word, a value of elsewhere, something taken away or doubled.
fn change(place: &mut Value, other: Value, random: &mut Random) {
    match place {
        Value::Number(number) => {
            let (old, by) = (number.as_i64().unwrap_or(0), random.below(9) as i64 - 4);
            let odd = NUMBERS[random.below(NUMBERS.len())];
            *place = match random.below(4) {
                0 => Value::Number(Number::from(odd)),
                1 => Value::Number(Number::from(old.wrapping_add(by))),
                _ if other.is_number() => other,
                _ => Value::Number(Number::from(random.below(64))),
            };
        }
        Value::Bool(value) => *value = !*value,
        Value::String(text) => match other {
            Value::String(other) => *text = other,
            _ => *text = word(random).to_owned(),
        },
        Value::Array(items) if random.below(2) == 0 && !items.is_empty() => {
            let at = random.below(items.len());
            match random.below(4) {
                0 => drop(items.remove(at)),
                1 => items.push(other),
                2 => items.insert(at, items[at].clone()),
                _ => items.swap(at, 0),
            }
        }
        Value::Object(fields) if random.below(3) == 0 && !fields.is_empty() => {
            let key = fields.keys().nth(random.below(fields.len())).cloned().unwrap_or_default();
            if random.below(2) == 0 {
                fields.remove(&key);
            } else {
                fields.insert(key, other);
            }
        }
        _ => *place = other,
    }
}

/// Number of values in `value`, itself included.
fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(fields) => fields.values().map(nodes).sum(),
        _ => 0,
    }
}

/// The value at `n`, when they are counted off in order.
fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
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
