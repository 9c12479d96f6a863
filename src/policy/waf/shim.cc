// The few calls of libmodsecurity that engine.rs makes, over its C++ interface and with plain C types outside.
//
// Its own C interface would do but for two things. An exception must not pass through Rust, and that interface catches
// none. And it tells of a match in one line of text in which a client's bytes stand unquoted, so that a client could
// forge the rule's number; here it is taken from the engine's own structure.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "modsecurity/modsecurity.h"
#include "modsecurity/rule_message.h"
#include "modsecurity/rules_set.h"
#include "modsecurity/transaction.h"

using modsecurity::ModSecurity;
using modsecurity::RuleMessage;
using modsecurity::RulesSet;
using modsecurity::Transaction;

namespace {

using OnMatch = void (*)(void *data, long long id, int severity, const char *message, size_t length);

// Matches are read from the transaction when it is over: among them is the rule that refuses, of which the engine tells
// nobody. Without a function it would write to standard error.
void ignore(void *, const void *) {}

void tell(const std::string &why, char *error, size_t capacity) {
    if (capacity > 0) {
        const size_t length = std::min(why.size(), capacity - 1);
        std::memcpy(error, why.data(), length);
        error[length] = '\0';
    }
}

// The engine's answer after a phase: nothing, or why it ends here.
bool intervened(Transaction &transaction, int *status) {
    modsecurity::ModSecurityIntervention it;
    modsecurity::intervention::clean(&it);
    const bool disruptive = transaction.intervention(&it);
    if (disruptive) {
        *status = it.status;
    }
    modsecurity::intervention::free(&it);
    return disruptive;
}

// The core rules keep the sum of their matches in a variable of the transaction: version 4 in the one, 3 in the other.
int score_of(Transaction &transaction) {
    for (const char *name : {"blocking_inbound_anomaly_score", "anomaly_score"}) {
        const std::unique_ptr<std::string> value = transaction.m_collections.m_tx_collection->resolveFirst(name);
        if (value) {
            return std::atoi(value->c_str());
        }
    }
    return 0;
}

}  // namespace

extern "C" {

struct HiveWafText {
    const unsigned char *bytes;
    size_t length;
};

struct HiveWafHeader {
    HiveWafText name;
    HiveWafText value;
};

// All texts that are not HiveWafText end in NUL.
struct HiveWafRequest {
    const char *client;
    int client_port;
    const char *server;
    int server_port;
    const char *method;
    const char *uri;
    const char *version;
    const HiveWafHeader *headers;
    size_t header_count;
    HiveWafText body;
};

// Null if it can't be made.
ModSecurity *hive_waf_worker_new() {
    try {
        auto worker = std::make_unique<ModSecurity>();
        worker->setConnectorInformation("hive-gateway");
        worker->setServerLogCb(ignore, modsecurity::RuleMessageLogProperty);
        return worker.release();
    } catch (...) {
        return nullptr;
    }
}

// Null if it can't be made.
RulesSet *hive_waf_rules_new() {
    try {
        return new RulesSet();
    } catch (...) {
        return nullptr;
    }
}

// Adds a file, or with `text` that text under the file's name. False with the engine's words, and then the set is of no use.
bool hive_waf_rules_add(RulesSet *rules, const char *file, const char *text, char *error, size_t capacity) {
    try {
        const int added = text == nullptr ? rules->loadFromUri(file) : rules->load(text, file);
        if (added < 0) {
            tell(rules->getParserError(), error, capacity);
        }
        return added >= 0;
    } catch (const std::exception &e) {
        tell(e.what(), error, capacity);
    } catch (...) {
        tell("an exception of no known kind", error, capacity);
    }
    return false;
}

void hive_waf_rules_free(RulesSet *rules) {
    try {
        delete rules;
    } catch (...) {
        // Destructors don't throw.
    }
}

// Runs a request's two phases. 0: it may pass; 1: it may not; -1: the engine failed. `score` is set in the first two cases.
int hive_waf_check(ModSecurity *worker, RulesSet *rules, const HiveWafRequest *request, OnMatch on_match, void *data,
                   int *status, int *score) {
    try {
        Transaction transaction(worker, rules, nullptr);
        transaction.processConnection(request->client, request->client_port, request->server, request->server_port);
        transaction.processURI(request->uri, request->method, request->version);
        for (size_t i = 0; i < request->header_count; ++i) {
            const HiveWafHeader &header = request->headers[i];
            transaction.addRequestHeader(header.name.bytes, header.name.length, header.value.bytes, header.value.length);
        }
        transaction.processRequestHeaders();
        bool refused = intervened(transaction, status);
        if (!refused) {
            if (request->body.length > 0) {
                transaction.appendRequestBody(request->body.bytes, request->body.length);
                refused = intervened(transaction, status);
            }
            if (!refused) {
                transaction.processRequestBody();
                refused = intervened(transaction, status);
            }
        }
        *score = score_of(transaction);
        for (const RuleMessage &match : transaction.m_rulesMessages) {
            on_match(data, match.m_ruleId, match.m_severity, match.m_message.data(), match.m_message.size());
        }
        return refused ? 1 : 0;
    } catch (...) {
        return -1;
    }
}

}  // extern "C"
