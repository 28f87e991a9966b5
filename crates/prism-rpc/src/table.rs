//! The rule of every RPC by its path, built from the descriptors at start (architecture, law 4).

use std::collections::HashMap;
use std::sync::Arc;

use prism_proto::rules::{self, MethodRule};

/// The rules of all RPCs; there is no RPC without one.
#[derive(Debug)]
pub struct Table {
    by_path: HashMap<String, Arc<MethodRule>>,
}

impl Table {
    /// Reads the rules from the descriptors; fails with a sentence that names every RPC without a complete rule.
    pub fn load() -> Result<Self, String> {
        let by_path = rules::rules()?.into_iter().map(|rule| (rule.path.clone(), Arc::new(rule))).collect();
        Ok(Self { by_path })
    }

    /// The rule of the RPC at `path`, such as `/prism.admin.v1.AdminService/CreateConfig`; `None` = no such RPC.
    pub fn rule(&self, path: &str) -> Option<&Arc<MethodRule>> {
        self.by_path.get(path)
    }

    /// All rules, in no particular order.
    pub fn rules(&self) -> impl Iterator<Item = &MethodRule> {
        self.by_path.values().map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_its_path() {
        let table = Table::load().unwrap();
        assert!(table.rules().count() > 70);
        for rule in table.rules() {
            assert_eq!(table.rule(&rule.path).map(Arc::as_ref), Some(rule));
        }
        assert!(table.rule("/prism.admin.v1.AdminService/Nothing").is_none());
    }
}
