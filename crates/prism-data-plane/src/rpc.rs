//! The RPCs of the data plane and their rules, taken from the descriptors at start (architecture, law 4).

use prism_core::config::AccessPattern;
use prism_proto::rules::DataClass;
use prism_rpc::Table;

use crate::decision::Act;

macro_rules! rpcs {
    ($($variant:ident $package:literal $service:literal $method:literal;)*) => {
        /// An RPC of the data plane.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rpc {
            $(
                #[doc = concat!("`", $package, ".", $service, "/", $method, "`.")]
                $variant,
            )*
        }

        impl Rpc {
            /// All of them; an RPC's place is its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Service and method, as metrics name them.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => concat!($service, "/", $method),)* }
            }

            /// Path of its requests.
            pub fn path(self) -> &'static str {
                match self { $(Self::$variant => concat!("/", $package, ".", $service, "/", $method),)* }
            }

            /// The proto package, domain of its errors.
            pub fn domain(self) -> &'static str {
                match self { $(Self::$variant => $package,)* }
            }
        }
    };
}

rpcs! {
    CreateSession "prism.session.v1" "SessionService" "CreateSession";
    CloseSession "prism.session.v1" "SessionService" "CloseSession";
    Heartbeat "prism.session.v1" "SessionService" "Heartbeat";
    GetSession "prism.session.v1" "SessionService" "GetSession";
    RefreshSession "prism.session.v1" "SessionService" "RefreshSession";
    Get "prism.keyvalue.v1" "KeyValueService" "Get";
    Put "prism.keyvalue.v1" "KeyValueService" "Put";
    Delete "prism.keyvalue.v1" "KeyValueService" "Delete";
    List "prism.keyvalue.v1" "KeyValueService" "List";
    BatchGet "prism.keyvalue.v1" "KeyValueService" "BatchGet";
    BatchPut "prism.keyvalue.v1" "KeyValueService" "BatchPut";
    QueuePublish "prism.queue.v1" "QueueService" "Publish";
    QueuePublishBatch "prism.queue.v1" "QueueService" "PublishBatch";
    QueueSubscribe "prism.queue.v1" "QueueService" "Subscribe";
    Acknowledge "prism.queue.v1" "QueueService" "Acknowledge";
    Commit "prism.queue.v1" "QueueService" "Commit";
    Seek "prism.queue.v1" "QueueService" "Seek";
    GetTopicInfo "prism.queue.v1" "QueueService" "GetTopicInfo";
    EventPublish "prism.pubsub.v1" "PubSubService" "Publish";
    EventSubscribe "prism.pubsub.v1" "PubSubService" "Subscribe";
    Unsubscribe "prism.pubsub.v1" "PubSubService" "Unsubscribe";
    Read "prism.reader.v1" "ReaderService" "Read";
    Query "prism.reader.v1" "ReaderService" "Query";
    Count "prism.reader.v1" "ReaderService" "Count";
    Write "prism.transact.v1" "TransactService" "Write";
    Transaction "prism.transact.v1" "TransactService" "Transaction";
    ReadMailbox "prism.transact.v1" "TransactService" "ReadMailbox";
    ListConfigs "prism.config.v1" "ConfigService" "ListConfigs";
    GetConfig "prism.config.v1" "ConfigService" "GetConfig";
    ValidateConfig "prism.config.v1" "ConfigService" "ValidateConfig";
}

/// How many RPCs there are.
pub const COUNT: usize = Rpc::ALL.len();

impl Rpc {
    /// The pattern that a session must have for it; `None` = any.
    pub fn pattern(self) -> Option<AccessPattern> {
        Some(match self.domain() {
            "prism.keyvalue.v1" => AccessPattern::KeyValue,
            "prism.queue.v1" => AccessPattern::Queue,
            "prism.pubsub.v1" => AccessPattern::PubSub,
            "prism.reader.v1" => AccessPattern::PagedReader,
            "prism.transact.v1" => AccessPattern::TransactWrite,
            _ => return None,
        })
    }
}

/// What a session's grant must hold for an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// `read`.
    Read,
    /// `write`.
    Write,
    /// The session itself is enough.
    Nothing,
}

/// What the gate must know of an RPC.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// What it is to the gate's decision.
    pub act: Act,
    /// What the grant must hold.
    pub needs: Needs,
    /// Whether its answer is a stream.
    pub streams: bool,
    /// The pattern that the session must have.
    pub pattern: Option<AccessPattern>,
}

/// The rules of all RPCs of the data plane.
#[derive(Debug)]
pub struct Methods([Method; COUNT]);

impl Methods {
    /// Takes the rules from `table`; fails when an RPC has none, or a rule of the data plane has no RPC here.
    pub fn load(table: &Table) -> Result<Self, String> {
        let mut methods = Vec::with_capacity(COUNT);
        for rpc in Rpc::ALL {
            let rule = table.rule(rpc.path()).ok_or_else(|| format!("{} has no rule", rpc.path()))?;
            methods.push(Method {
                act: act(*rpc, rule.data_class).ok_or_else(|| format!("{} has no data class", rpc.path()))?,
                needs: match rule.permission.as_str() {
                    "read" => Needs::Read,
                    "write" => Needs::Write,
                    "session" | "credential" => Needs::Nothing,
                    other => return Err(format!("{} needs the unknown permission {other:?}", rpc.path())),
                },
                streams: rule.server_streaming,
                pattern: rpc.pattern(),
            });
        }
        let unknown = table
            .rules()
            .filter(|rule| rule.data_class != DataClass::Unspecified)
            .find(|rule| !Rpc::ALL.iter().any(|rpc| rpc.path() == rule.path));
        if let Some(rule) = unknown {
            return Err(format!("{} has a data class and is not served", rule.path));
        }
        methods.try_into().map(Self).map_err(|_| "the table of RPCs is incomplete".to_owned())
    }

    /// The rule of `rpc`.
    pub fn of(&self, rpc: Rpc) -> Method {
        self.0[rpc as usize]
    }
}

fn act(rpc: Rpc, class: DataClass) -> Option<Act> {
    Some(match (class, rpc) {
        (DataClass::Session, Rpc::CreateSession) => Act::Open,
        (DataClass::Session, _) => Act::Session,
        (DataClass::Life, _) => Act::Life,
        // Ends a subscription, so it is let through wherever a message may be settled.
        (DataClass::Settle, _) | (DataClass::Read, Rpc::Unsubscribe) => Act::Settle,
        // Changes no data, but moves a group: maintenance with `allow_reads` does not name it.
        (DataClass::Read, Rpc::Seek) => Act::Seek,
        (DataClass::Read, _) => Act::Read,
        (DataClass::Write, _) => Act::Write,
        (DataClass::Catalog, _) => Act::Catalog,
        (DataClass::Unspecified, _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_the_data_plane_has_its_rule() {
        let methods = Methods::load(&Table::load().unwrap()).unwrap();
        for (number, rpc) in Rpc::ALL.iter().enumerate() {
            assert_eq!(*rpc as usize, number);
            assert_eq!(
                methods.of(*rpc).pattern.is_some(),
                !matches!(rpc.domain(), "prism.session.v1" | "prism.config.v1")
            );
        }
    }

    /// Contract §9 "maintenance": what `allow_reads` keeps.
    #[test]
    fn reads_are_those_of_the_contract() {
        let methods = Methods::load(&Table::load().unwrap()).unwrap();
        let reads: Vec<_> =
            Rpc::ALL.iter().filter(|rpc| methods.of(**rpc).act == Act::Read).map(|rpc| rpc.label()).collect();
        assert_eq!(
            reads,
            [
                "KeyValueService/Get",
                "KeyValueService/List",
                "KeyValueService/BatchGet",
                "QueueService/Subscribe",
                "QueueService/GetTopicInfo",
                "PubSubService/Subscribe",
                "ReaderService/Read",
                "ReaderService/Query",
                "ReaderService/Count",
                "TransactService/ReadMailbox",
            ]
        );
    }
}
