//! A bounded memory of what was verified.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

type Key = [u8; 32];

/// Values by SHA-256, in two halves: when the newer one is full, the older one is forgotten. Constant cost per call.
pub struct Cache<V> {
    half: usize,
    generations: Mutex<Generations<V>>,
}

struct Generations<V> {
    newer: HashMap<Key, V>,
    older: HashMap<Key, V>,
}

impl<V: Clone> Cache<V> {
    /// Holds at most `most` values.
    pub fn new(most: usize) -> Self {
        let generations = Generations { newer: HashMap::new(), older: HashMap::new() };
        Self { half: (most / 2).max(1), generations: Mutex::new(generations) }
    }

    /// The value of a hash. What is asked for is kept longer than what is not.
    pub fn get(&self, hash: &[u8]) -> Option<V> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = generations.newer.get(hash) {
            return Some(value.clone());
        }
        let (key, value) = generations.older.remove_entry(hash)?;
        self.put(&mut generations, key, value.clone());
        Some(value)
    }

    /// Remembers the value of a hash of 32 bytes; another length is not remembered.
    pub fn insert(&self, hash: &[u8], value: V) {
        if let Ok(key) = Key::try_from(hash) {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            self.put(&mut generations, key, value);
        }
    }

    fn put(&self, generations: &mut Generations<V>, key: Key, value: V) {
        if generations.newer.len() >= self.half && !generations.newer.contains_key(&key) {
            generations.older = std::mem::take(&mut generations.newer);
        }
        generations.newer.insert(key, value);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let generations = self.generations.lock().unwrap();
        generations.newer.len() + generations.older.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> Key {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        hash
    }

    #[test]
    fn it_stays_small_and_keeps_what_is_used() {
        let cache = Cache::new(8);
        cache.insert(&hash(0), 0);
        for number in 1..1000 {
            cache.insert(&hash(number), number);
            assert_eq!(cache.get(&hash(0)), Some(0), "after {number}");
            assert!(cache.len() <= 8, "{}", cache.len());
        }
        assert_eq!(cache.get(&hash(999)), Some(999));
        assert_eq!(cache.get(&hash(900)), None);
    }

    #[test]
    fn half_of_it_is_kept_at_least() {
        let cache = Cache::new(8);
        for number in 0..100 {
            cache.insert(&hash(number), number);
            // A full half that gets the same again does not move on.
            cache.insert(&hash(number), number);
            for kept in number.saturating_sub(3)..=number {
                let newer = cache.generations.lock().unwrap().newer.contains_key(&hash(kept));
                let older = cache.generations.lock().unwrap().older.contains_key(&hash(kept));
                assert!(newer || older, "{kept} of {number}");
            }
        }
        assert!(cache.len() > 4);
    }

    #[test]
    fn a_value_may_be_replaced() {
        let cache = Cache::new(2);
        cache.insert(&hash(1), 1);
        cache.insert(&hash(1), 2);
        assert_eq!(cache.get(&hash(1)), Some(2));
        cache.insert(&[1; 5], 3);
        assert_eq!(cache.get(&[1; 5]), None);
    }
}
