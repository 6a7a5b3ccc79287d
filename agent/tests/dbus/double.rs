//! A double of a manager: objects with properties, which it tells as the D-Bus specification's
//! `Properties` and `ObjectManager` say. What it does not know it refuses.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use tokio::sync::watch;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue, Value};
use zbus::{Connection, Message, MessageStream};

use crate::bus::Bus;

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";

type Properties = HashMap<String, OwnedValue>;
type Object = BTreeMap<String, Properties>;

/// A connection to a bus that answers for a manager.
pub(crate) struct Double {
    connection: Connection,
    state: Arc<Mutex<State>>,
    asked: watch::Receiver<usize>,
}

struct State {
    objects: BTreeMap<String, Object>,
    /// The object of which it says what means nothing.
    babbles: Option<String>,
    /// It takes questions and answers none.
    hangs: bool,
    /// Who answers in its place.
    other: Option<Connection>,
    /// How many questions there were.
    asked: watch::Sender<usize>,
    /// Who asked last, and about which object.
    last: Option<(String, String)>,
}

/// A path as a value.
pub(crate) fn path(path: &str) -> Value<'static> {
    ObjectPath::try_from(path.to_owned()).unwrap().into()
}

/// Paths as a value.
pub(crate) fn paths<S: AsRef<str>>(paths: impl IntoIterator<Item = S>) -> Value<'static> {
    let paths = paths.into_iter();
    let owned = |path: S| OwnedObjectPath::try_from(path.as_ref()).unwrap();
    paths.map(owned).collect::<Vec<_>>().into()
}

impl Double {
    /// One that has no name yet.
    pub(crate) async fn nameless(bus: &Bus) -> Self {
        let connection = connect(bus).await;
        let (sender, asked) = watch::channel(0);
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            babbles: None,
            hangs: false,
            other: None,
            asked: sender,
            last: None,
        }));
        let messages = MessageStream::from(&connection);
        tokio::spawn(serve(connection.clone(), messages, Arc::clone(&state)));
        Self {
            connection,
            state,
            asked,
        }
    }

    /// Takes `name` on the bus.
    pub(crate) async fn take_name(&self, name: &str) {
        self.connection.request_name(name).await.unwrap();
    }

    /// Leaves the bus, and with it its name.
    pub(crate) async fn end(self) {
        self.connection.close().await.unwrap();
    }

    /// Whether it takes questions without answering.
    pub(crate) fn hang(&self, hangs: bool) {
        self.state.lock().unwrap().hangs = hangs;
    }

    /// Has it answer questions about an object by what means nothing.
    pub(crate) fn babble(&self, path: &str) {
        self.state.lock().unwrap().babbles = Some(path.to_owned());
    }

    /// Has another answer in its place what it would have answered.
    pub(crate) fn answer_by(&self, other: Option<Connection>) {
        self.state.lock().unwrap().other = other;
    }

    /// How many questions it was asked.
    pub(crate) fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// Waits until it was asked again.
    pub(crate) async fn is_asked(&self) {
        let mut asked = self.asked.clone();
        asked.mark_unchanged();
        asked.changed().await.unwrap();
    }

    /// Who asked it last, and about which object.
    pub(crate) fn last_question(&self) -> (String, String) {
        let state = self.state.lock().unwrap();
        state.last.clone().expect("somebody asked")
    }

    /// Makes an object's interface, without a word.
    pub(crate) fn have<const N: usize>(
        &self,
        path: &str,
        interface: &str,
        properties: [(&str, Value<'_>); N],
    ) {
        let mut state = self.state.lock().unwrap();
        let object = state.objects.entry(path.to_owned()).or_default();
        let of = object.entry(interface.to_owned()).or_default();
        for (name, value) in properties {
            of.insert(name.to_owned(), value.try_to_owned().unwrap());
        }
    }

    /// Makes an object and says so, as an `ObjectManager` at `root`.
    pub(crate) async fn add<const N: usize>(
        &self,
        root: &str,
        path: &str,
        interface: &str,
        properties: [(&str, Value<'_>); N],
    ) {
        self.have(path, interface, properties);
        let object = self.object(path).unwrap();
        let body = (ObjectPath::try_from(path).unwrap(), object);
        self.say(root, OBJECT_MANAGER, "InterfacesAdded", &body)
            .await;
    }

    /// Removes an object and says so, as an `ObjectManager` at `root`.
    pub(crate) async fn remove(&self, root: &str, path: &str) {
        let object = self.state.lock().unwrap().objects.remove(path).unwrap();
        let interfaces: Vec<_> = object.into_keys().collect();
        let body = (ObjectPath::try_from(path).unwrap(), interfaces);
        self.say(root, OBJECT_MANAGER, "InterfacesRemoved", &body)
            .await;
    }

    /// Removes an object without a word.
    pub(crate) fn lose(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path).unwrap();
    }

    /// Changes a property and says so.
    pub(crate) async fn set(&self, path: &str, interface: &str, name: &str, value: Value<'_>) {
        self.have(path, interface, [(name, value.try_clone().unwrap())]);
        let changed = HashMap::from([(name, value)]);
        let body = (interface, changed, Vec::<&str>::new());
        self.say(path, PROPERTIES, "PropertiesChanged", &body).await;
    }

    /// Sends a signal, and waits until the bus has passed it on.
    async fn say<B>(&self, path: &str, interface: &str, member: &str, body: &B)
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let nobody = None::<&str>;
        let said = self
            .connection
            .emit_signal(nobody, path, interface, member, body);
        said.await.unwrap();
        round_trip(&self.connection).await;
    }

    fn object(&self, path: &str) -> Option<Object> {
        let state = self.state.lock().unwrap();
        state.objects.get(path).map(copy)
    }
}

/// A connection to a bus.
pub(crate) async fn connect(bus: &Bus) -> Connection {
    let builder = Builder::address(bus.address().as_str()).unwrap();
    builder.build().await.unwrap()
}

/// Waits until the bus has worked off all that was sent to it before.
pub(crate) async fn round_trip(connection: &Connection) {
    let bus = "org.freedesktop.DBus";
    let asked = connection.call_method(Some(bus), "/", Some(bus), "GetId", &());
    asked.await.unwrap();
}

fn copy(object: &Object) -> Object {
    let copy = |properties: &Properties| -> Properties {
        let values = properties.iter();
        values
            .map(|(name, value)| (name.clone(), value.try_clone().unwrap()))
            .collect()
    };
    let interfaces = object.iter();
    interfaces
        .map(|(interface, properties)| (interface.clone(), copy(properties)))
        .collect()
}

/// What is answered to a question.
enum Answer {
    Properties(Properties),
    Objects(HashMap<OwnedObjectPath, Object>),
    Refusal(&'static str),
    Nonsense,
}

async fn serve(connection: Connection, mut messages: MessageStream, state: Arc<Mutex<State>>) {
    while let Some(Ok(message)) = messages.next().await {
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let (answer, other) = {
            let mut state = state.lock().unwrap();
            (state.answer(&message), state.other.clone())
        };
        let Some(answer) = answer else { continue };
        let to = message.header();
        let by = other.as_ref().unwrap_or(&connection);
        // The bus may end at any time.
        let _sent = match answer {
            Answer::Properties(properties) => by.reply(&to, &properties).await,
            Answer::Objects(objects) => by.reply(&to, &objects).await,
            Answer::Nonsense => by.reply(&to, &7_u32).await,
            Answer::Refusal(name) => by.reply_error(&to, name, &"no").await,
        };
    }
}

impl State {
    fn answer(&mut self, question: &Message) -> Option<Answer> {
        let header = question.header();
        let caller = header.sender().unwrap().to_string();
        self.last = Some((caller, header.path().unwrap().to_string()));
        self.asked.send_modify(|asked| *asked += 1);
        if self.hangs {
            return None;
        }
        let path = header.path().unwrap().as_str();
        if self.babbles.as_deref() == Some(path) {
            return Some(Answer::Nonsense);
        }
        match header.member().unwrap().as_str() {
            "GetAll" => {
                let body = question.body();
                let interface: &str = body.deserialize().unwrap();
                let Some(object) = self.objects.get(path) else {
                    // What GDBus says of an object that is not there.
                    return Some(Answer::Refusal("org.freedesktop.DBus.Error.UnknownMethod"));
                };
                Some(copy(object).remove(interface).map_or(
                    Answer::Refusal("org.freedesktop.DBus.Error.InvalidArgs"),
                    Answer::Properties,
                ))
            }
            "GetManagedObjects" => {
                let below = format!("{path}/");
                let objects = self.objects.iter();
                let managed = objects.filter(|(path, _)| path.starts_with(&below));
                let owned = |path: &String| OwnedObjectPath::try_from(path.as_str()).unwrap();
                Some(Answer::Objects(
                    managed
                        .map(|(path, object)| (owned(path), copy(object)))
                        .collect(),
                ))
            }
            _ => Some(Answer::Refusal("org.freedesktop.DBus.Error.UnknownMethod")),
        }
    }
}
