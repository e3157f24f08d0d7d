//! The mailbox of the Go dispatcher: letters that agents leave for each other under a workspace's name.
//! Must not mark as read what it did not hand out.

use super::{
    agentic,
    door::Refusal,
    table::{Call, Reply, Row, row},
};
use crate::api::{
    agentic::{
        AgentMessage, ConversationInput, InboxInput, LETTERS, MessagesOutput, SendInput, SendOutput,
    },
    letter::{Between, Fetch, Inbox, Letter, Letters, Send},
};

const SEND: &str = "Leave a letter for another agent under a workspace's name. It is kept until it is \
                    fetched; nobody is woken by it (`say` speaks to a task's agent).";
const INBOX: &str = "Letters for an agent at a workspace, oldest first. What is handed out counts as \
                     read; `unread` says how many still wait.";
const CONVERSATION: &str = "The newest letters between two agents at a workspace, oldest first. \
                            Nothing counts as read by it.";

pub(crate) const TOOLS: &[Row] = &[
    row!("agent_send", "Send a letter", Adds, send: SendInput => SendOutput, SEND),
    row!("agent_inbox", "Fetch letters", Changes, inbox: InboxInput => MessagesOutput, INBOX),
    row!(
        "agent_conversation", "Look up letters", Looks,
        conversation: ConversationInput => MessagesOutput, CONVERSATION
    ),
    row!("agentic_message_send", "Send a letter", Adds, send: SendInput => SendOutput, SEND),
    row!(
        "agentic_message_inbox", "Fetch letters", Changes, inbox: InboxInput => MessagesOutput, INBOX
    ),
    row!(
        "agentic_message_conversation", "Look up letters", Looks,
        conversation: ConversationInput => MessagesOutput, CONVERSATION
    ),
];

fn message(workspace: &str, letter: Letter) -> AgentMessage {
    AgentMessage {
        id: format!("msg-{}", letter.id),
        workspace: workspace.to_owned(),
        from_agent: letter.writer,
        to_agent: letter.reader,
        subject: letter.subject,
        content: letter.text,
        read_at: letter.read_at.unwrap_or_default(),
        created_at: letter.at,
        sent_by: letter.from,
    }
}

fn limit(asked: usize) -> usize {
    match asked {
        0 => LETTERS,
        asked => asked,
    }
}

async fn send(call: &Call, input: SendInput) -> Result<Reply<SendOutput>, Refusal> {
    let workspace = agentic::find(call, &input.workspace).await?.workspace_name;
    let asked = Send {
        workspace: workspace.clone(),
        writer: input.from_agent.trim().to_owned(),
        reader: input.to_agent.trim().to_owned(),
        subject: input.subject.trim().to_owned(),
        text: input.content,
    };
    let letter: Letter = call.door.post("/v1/letters", &asked).await?;
    Ok(SendOutput {
        success: true,
        message: message(&workspace, letter),
    }
    .into())
}

async fn inbox(call: &Call, input: InboxInput) -> Result<Reply<MessagesOutput>, Refusal> {
    let workspace = agentic::find(call, &input.workspace).await?.workspace_name;
    let asked = Fetch {
        workspace: workspace.clone(),
        reader: input.agent.trim().to_owned(),
        limit: limit(input.limit),
    };
    let found: Inbox = call.door.post("/v1/letters/fetch", &asked).await?;
    Ok(MessagesOutput {
        success: true,
        new: found.new,
        count: found.letters.len(),
        messages: messages(&workspace, found.letters),
        unread: found.unread,
    }
    .into())
}

async fn conversation(
    call: &Call,
    input: ConversationInput,
) -> Result<Reply<MessagesOutput>, Refusal> {
    let workspace = agentic::find(call, &input.workspace).await?.workspace_name;
    let asked = Between {
        workspace: workspace.clone(),
        agent: input.agent.trim().to_owned(),
        with: input.with_agent.trim().to_owned(),
        limit: limit(input.limit),
    };
    let Letters { letters } = call.door.look("/v1/letters/between", &asked).await?;
    let unread = letters.iter().filter(|letter| letter.read_at.is_none());
    Ok(MessagesOutput {
        success: true,
        new: 0,
        count: letters.len(),
        unread: unread.count(),
        messages: messages(&workspace, letters),
    }
    .into())
}

fn messages(workspace: &str, letters: Vec<Letter>) -> Vec<AgentMessage> {
    let one = |letter| message(workspace, letter);
    letters.into_iter().map(one).collect()
}
