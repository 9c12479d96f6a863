// The few calls of libmodsecurity that engine.rs makes, over its C++ interface and with plain C types outside.
//
// Its own C interface would do but for two things. An exception must not pass through Rust, and that interface catches
// none. And it tells of a match in one line of text in which a client's bytes stand unquoted, so that a client could
// forge the rule's number; here it is taken from the engine's own structure.

//
// And it stands between the engine and PCRE2: libmodsecurity 3.0.9 knows no limit of an expression's steps, and takes one
// that was ended for one that does not match.

#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "modsecurity/modsecurity.h"
#include "modsecurity/rule_message.h"
#include "modsecurity/rules_set.h"
#include "modsecurity/transaction.h"

using modsecurity::ModSecurity;
using modsecurity::RuleMessage;
using modsecurity::RulesSet;
using modsecurity::Transaction;
using std::chrono::steady_clock;

namespace {

// PCRE2's interface (pcre2.h of 10.42), as far as it is used. Its names are looked up in the library that the engine brings.
using Match = int(const void *code, const uint8_t *subject, size_t length, size_t start, uint32_t options, void *data,
                  void *context);
constexpr int NO_MATCH = -1;
constexpr int NO_MEMORY = -48;
constexpr int MATCH_LIMIT = -47;
constexpr int DEPTH_LIMIT = -53;
constexpr int HEAP_LIMIT = -63;

// Steps that one search may take at all places of a value together, unless it is so long that fewer than the least from one
// place would be left; PCRE2 counts them from each place anew.
constexpr size_t STEPS_MAX = 8 << 20;
constexpr size_t STEPS_FROM_A_PLACE_LEAST = 2000;
constexpr size_t STEPS_FROM_A_PLACE_MAX = 100000;
// Processor's time that all of a request's searches may take, and after how many it is looked at.
constexpr std::chrono::milliseconds PROCESSOR_MAX(500);
constexpr unsigned SEARCHES_PER_LOOK = 8;
// Elements and attributes of a body, as of JSON's values (SecArgumentsLimit).
constexpr size_t XML_VALUES_MAX = 1000;
// The core rules know so many paranoia levels.
constexpr long long PARANOIA_LEVEL_MAX = 4;

template <typename Function>
Function *of_pcre2(const char *name) {
    return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}

// What the request in this thread may still take.
struct Budget {
    bool running = false;
    bool steps_exceeded = false;
    bool time_exceeded = false;
    steady_clock::time_point deadline;
    std::chrono::nanoseconds processor_deadline{};
    unsigned searches = 0;
    void *context = nullptr;
};
thread_local Budget budget;

std::chrono::nanoseconds processor_time() {
    timespec used{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

// A search under the limits. Once one has exceeded them the answer is known, and the rest does not search.
int search(Match *match, const void *code, const uint8_t *subject, size_t length, size_t start, uint32_t options,
           void *data, void *context) {
    if (match == nullptr) {
        return NO_MEMORY;
    }
    if (!budget.running) {
        return match(code, subject, length, start, options, data, context);
    }
    if (budget.searches++ % SEARCHES_PER_LOOK == 0) {
        budget.time_exceeded = budget.time_exceeded || steady_clock::now() >= budget.deadline;
        budget.steps_exceeded = budget.steps_exceeded || processor_time() >= budget.processor_deadline;
    }
    if (budget.steps_exceeded || budget.time_exceeded) {
        return NO_MATCH;
    }
    static const auto set_limit = of_pcre2<int(void *, uint32_t)>("pcre2_set_match_limit_8");
    const size_t steps = STEPS_MAX / std::max<size_t>(length, 1);
    set_limit(budget.context,
              static_cast<uint32_t>(std::clamp(steps, STEPS_FROM_A_PLACE_LEAST, STEPS_FROM_A_PLACE_MAX)));
    const int found = match(code, subject, length, start, options, data, budget.context);
    if (found == MATCH_LIMIT || found == DEPTH_LIMIT || found == HEAP_LIMIT || found == NO_MEMORY) {
        budget.steps_exceeded = true;
        return NO_MATCH;
    }
    return found;
}

// Gives the thread a budget for one request.
class Running {
  public:
    explicit Running(unsigned budget_ms) {
        static const auto create = of_pcre2<void *(void *)>("pcre2_match_context_create_8");
        if (budget.context == nullptr && (create == nullptr || (budget.context = create(nullptr)) == nullptr)) {
            throw std::exception();
        }
        budget.steps_exceeded = budget.time_exceeded = false;
        budget.deadline = steady_clock::now() + std::chrono::milliseconds(budget_ms);
        budget.processor_deadline = processor_time() + PROCESSOR_MAX;
        budget.searches = 0;
        budget.running = true;
    }
    ~Running() { budget.running = false; }
    Running(const Running &) = delete;
    Running &operator=(const Running &) = delete;
};

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

// What hive_waf_check says of a body that is not given to the rules.
enum Unread { READABLE = 0, DOCUMENT_TYPE = 3, TOO_MANY_VALUES = 4, FOREIGN_CODING = 5 };

// Where a body begins, behind a mark of UTF-8 and white space.
size_t first_of(const unsigned char *body, size_t length) {
    size_t at = length >= 3 && std::memcmp(body, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    while (at < length && body[at] != 0 && std::strchr(" \t\r\n", body[at]) != nullptr) {
        ++at;
    }
    return at;
}

// How a body is read whose Content-Type says nothing that the engine reads.
enum class Way { AS_IT_LOOKS, AS_A_FORM };

// Such a body is read as what it looks like, as many a server does: else no rule would see it. UTF-16 and UTF-32 look like
// nothing to the rules, but some servers read them by their marks.
Unread choose_processor(Transaction &transaction, const unsigned char *body, size_t length, Way way, bool *guessed_xml) {
    if (transaction.m_requestBodyProcessor != Transaction::UnknownFormat ||
        transaction.m_requestBodyType != Transaction::UnknownFormat) {
        return READABLE;
    }
    const std::string mark(reinterpret_cast<const char *>(body), std::min<size_t>(length, 4));
    for (const char *wide : {"\xFE\xFF", "\xFF\xFE"}) {
        if (mark.compare(0, 2, wide) == 0 || mark == std::string(2, '\0') + wide) {
            return FOREIGN_CODING;
        }
    }
    if (mark.size() > 1 && mark[0] == '\0' && mark[1] != '\0' && std::strchr("<{[", mark[1]) != nullptr) {
        return FOREIGN_CODING;
    }
    const size_t at = first_of(body, length);
    size_t end = length;
    while (end > at && std::strchr(" \t\r\n", body[end - 1]) != nullptr && body[end - 1] != 0) {
        --end;
    }
    const unsigned char first = at < end ? body[at] : 0;
    const bool string = first == '"' && end - at > 1 && body[end - 1] == '"';
    *guessed_xml = first == '<';
    if (way == Way::AS_IT_LOOKS && (first == '{' || first == '[' || string)) {
        transaction.m_requestBodyProcessor = Transaction::JSONRequestBody;
    } else if (way == Way::AS_IT_LOOKS && first == '<') {
        transaction.m_requestBodyProcessor = Transaction::XMLRequestBody;
    } else {
        transaction.m_requestBodyProcessor = Transaction::WWWFormUrlEncoded;
        transaction.m_requestBodyType = Transaction::WWWFormUrlEncoded;
    }
    return READABLE;
}

// The coding that an XML declaration names, in upper case. Something else than a name if it can't be told.
std::string declared_coding(const std::string &declaration) {
    size_t at = declaration.find("ENCODING");
    if (at == std::string::npos) {
        return "UTF-8";
    }
    const auto skip = [&] { at = std::min(declaration.find_first_not_of(" \t\r\n", at), declaration.size()); };
    at += std::strlen("ENCODING");
    skip();
    if (at >= declaration.size() || declaration[at++] != '=') {
        return "";
    }
    skip();
    const char quote = at < declaration.size() ? declaration[at] : 0;
    const size_t end = quote == '"' || quote == '\'' ? declaration.find(quote, at + 1) : std::string::npos;
    return end == std::string::npos ? "" : declaration.substr(at + 1, end - at - 1);
}

// Whether the engine may read a body of XML, which it does outside of every limit.
//
// A document type definition can make kilobytes into megabytes, and it can name what no rule sees. No call needs one. It is
// looked for in bytes, so the text must be of a coding that has ASCII's. And the time for attributes and elements grows with
// the square of their number, for each rule: so many as of other values may be there, and rather too many are counted (in
// comments, in text) than too few.
Unread unread_xml(const unsigned char *body, size_t length) {
    std::string text(reinterpret_cast<const char *>(body), length);
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    const size_t first = first_of(body, length);
    if (first >= length || text[first] != '<' || text.find('\0') != std::string::npos) {
        return FOREIGN_CODING;
    }
    if (text.find("<!DOCTYPE") != std::string::npos || text.find("<!ENTITY") != std::string::npos) {
        return DOCUMENT_TYPE;
    }
    if (text.compare(first, 5, "<?XML") == 0) {
        const std::string coding = declared_coding(text.substr(first, text.find("?>", first) - first));
        if (coding != "UTF-8" && coding != "US-ASCII" && coding != "ISO-8859-1") {
            return FOREIGN_CODING;
        }
    }
    size_t values = 0;
    for (size_t at = first; at < length; ++at) {
        if (text[at] == '<') {
            values += at + 1 < length && text[at + 1] != '/';
        } else if (text[at] == '=') {
            const size_t next = text.find_first_not_of(" \t\r\n", at + 1);
            values += next != std::string::npos && (text[next] == '"' || text[next] == '\'');
        }
        if (values > XML_VALUES_MAX) {
            return TOO_MANY_VALUES;
        }
    }
    return READABLE;
}

// A number in a variable of the transaction.
std::optional<long long> variable_of(Transaction &transaction, const std::string &name) {
    const std::unique_ptr<std::string> value = transaction.m_collections.m_tx_collection->resolveFirst(name);
    if (!value) {
        return std::nullopt;
    }
    return std::clamp<long long>(std::strtoll(value->c_str(), nullptr, 10), INT_MIN, INT_MAX);
}

// The core rules add up their matches for each paranoia level, version 4 in the one, 3 in the other variables. Their last file
// for requests makes one sum of the levels that block. It may be missing, or own rules may count in the sum alone.
int score_of(Transaction &transaction) {
    long long score = 0;
    for (const char *name : {"blocking_inbound_anomaly_score", "anomaly_score"}) {
        score = std::max(score, variable_of(transaction, name).value_or(0));
    }
    long long level = 0;
    for (const char *name : {"blocking_paranoia_level", "paranoia_level"}) {
        level = std::max(level, variable_of(transaction, name).value_or(0));
    }
    // Where nobody says which levels block, all do.
    const long long last = level < 1 ? PARANOIA_LEVEL_MAX : std::min(level, PARANOIA_LEVEL_MAX);
    for (const std::string name : {"inbound_anomaly_score_pl", "anomaly_score_pl"}) {
        long long sum = 0;
        for (long long of = 1; of <= last; ++of) {
            sum += variable_of(transaction, name + std::to_string(of)).value_or(0);
        }
        score = std::max(score, sum);
    }
    return static_cast<int>(std::min<long long>(score, INT_MAX));
}

// All texts that are not HiveWafText end in NUL.
struct HiveWafText {
    const unsigned char *bytes;
    size_t length;
};

struct HiveWafHeader {
    HiveWafText name;
    HiveWafText value;
};

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

// What came of a request, with the body read in one way.
struct Seen {
    Unread unread = READABLE;
    bool refused = false;
    bool guessed_xml = false;
    int status = 0;
    int score = 0;
    std::list<RuleMessage> matches;
};

Seen look(ModSecurity *worker, RulesSet *rules, const HiveWafRequest &request, Way way) {
    Seen seen;
    Transaction transaction(worker, rules, nullptr);
    transaction.processConnection(request.client, request.client_port, request.server, request.server_port);
    transaction.processURI(request.uri, request.method, request.version);
    for (size_t i = 0; i < request.header_count; ++i) {
        const HiveWafHeader &header = request.headers[i];
        transaction.addRequestHeader(header.name.bytes, header.name.length, header.value.bytes, header.value.length);
    }
    transaction.processRequestHeaders();
    seen.refused = intervened(transaction, &seen.status);
    const HiveWafText &body = request.body;
    if (!seen.refused && body.length > 0) {
        seen.unread = choose_processor(transaction, body.bytes, body.length, way, &seen.guessed_xml);
        if (transaction.m_requestBodyProcessor == Transaction::XMLRequestBody) {
            seen.unread = unread_xml(body.bytes, body.length);
        }
        if (seen.unread == READABLE) {
            transaction.appendRequestBody(body.bytes, body.length);
            seen.refused = intervened(transaction, &seen.status);
        }
    }
    if (!seen.refused && seen.unread == READABLE) {
        transaction.processRequestBody();
        seen.refused = intervened(transaction, &seen.status);
    }
    seen.score = score_of(transaction);
    seen.matches = transaction.m_rulesMessages;
    return seen;
}

// Whether the engine's searches come by here: tried with an expression that takes very many steps.
bool limits_hold(ModSecurity *worker) {
    RulesSet rules;
    const char *rule = "SecRuleEngine On\nSecRule ARGS \"@rx ^(?:a+)+(?:a+)+$\" \"id:1,phase:1,pass,nolog,t:none\"\n";
    if (dlsym(RTLD_NEXT, "pcre2_set_match_limit_8") == nullptr || rules.load(rule, "limits") < 0) {
        return false;
    }
    const Running running(1000);
    Transaction transaction(worker, &rules, nullptr);
    transaction.processConnection("0.0.0.0", 0, "0.0.0.0", 0);
    transaction.processURI("/?x=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "GET", "1.1");
    transaction.processRequestHeaders();
    return budget.steps_exceeded;
}

}  // namespace

extern "C" {

// The engine's calls come here, for the program's names go before those of its libraries.
__attribute__((visibility("default"))) int pcre2_match_8(const void *code, const uint8_t *subject, size_t length,
                                                         size_t start, uint32_t options, void *data, void *context) {
    static const auto match = of_pcre2<Match>("pcre2_match_8");
    return search(match, code, subject, length, start, options, data, context);
}

__attribute__((visibility("default"))) int pcre2_jit_match_8(const void *code, const uint8_t *subject, size_t length,
                                                             size_t start, uint32_t options, void *data, void *context) {
    static const auto match = of_pcre2<Match>("pcre2_jit_match_8");
    return search(match, code, subject, length, start, options, data, context);
}

// Null if it can't be made, or if its searches can't be limited.
ModSecurity *hive_waf_worker_new() {
    try {
        auto worker = std::make_unique<ModSecurity>();
        worker->setConnectorInformation("hive-gateway");
        worker->setServerLogCb(ignore, modsecurity::RuleMessageLogProperty);
        return limits_hold(worker.get()) ? worker.release() : nullptr;
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

// Runs a request's two phases. 0: it may pass; 1: it may not; 2: an expression took too many steps, so nobody knows; 3 to 5: the
// body was not looked at (Unread); -1: the engine failed, or was not done in time. `score` is set but in the last case.
int hive_waf_check(ModSecurity *worker, RulesSet *rules, const HiveWafRequest *request, unsigned budget_ms,
                   OnMatch on_match, void *data, int *status, int *score) {
    try {
        const Running running(budget_ms);
        Seen seen = look(worker, rules, *request, Way::AS_IT_LOOKS);
        if (seen.guessed_xml && !seen.refused && seen.unread == READABLE) {
            // The rules see no markup of XML, and nobody said that it is XML: others may take it for HTML.
            Seen again = look(worker, rules, *request, Way::AS_A_FORM);
            if (again.refused || again.score > seen.score) {
                seen = std::move(again);
            }
        }
        *status = seen.status;
        *score = seen.score;
        for (const RuleMessage &match : seen.matches) {
            on_match(data, match.m_ruleId, match.m_severity, match.m_message.data(), match.m_message.size());
        }
        if (seen.unread != READABLE) {
            return seen.unread;
        }
        if (budget.time_exceeded) {
            return -1;
        }
        return budget.steps_exceeded ? 2 : seen.refused ? 1 : 0;
    } catch (...) {
        return -1;
    }
}

}  // extern "C"
