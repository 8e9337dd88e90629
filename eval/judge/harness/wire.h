// What joins a program's functions and the tests: messages, calls, exceptions, the verdict.
#pragma once
#include <fcntl.h>
#include <unistd.h>
#include "values.h"

namespace moe_wire {

// Messages of 8 bytes of length and the data, on descriptors 3 (in) and 4 (out). False at the end of the stream.
inline bool read_all(char* data, std::size_t size) {
    while (size > 0) {
        ssize_t count = ::read(3, data, size);
        if (count <= 0) return false;
        data += count;
        size -= count;
    }
    return true;
}

inline bool receive(std::string& data) {
    std::uint64_t size = 0;
    if (!read_all(reinterpret_cast<char*>(&size), sizeof size)) return false;
    if (size > LIMIT) throw Broken("a message is over the limit");
    data.resize(size);
    return read_all(data.data(), size);
}

inline bool send(const std::string& data) {
    std::uint64_t size = data.size();
    std::string message(reinterpret_cast<const char*>(&size), sizeof size);
    message += data;
    for (std::size_t done = 0; done < message.size();) {
        ssize_t count = ::write(4, message.data() + done, message.size() - done);
        if (count <= 0) return false;
        done += count;
    }
    return true;
}

template <class T>
constexpr bool written_back = (std::is_lvalue_reference_v<T> && !std::is_const_v<std::remove_reference_t<T>>) || std::is_pointer_v<std::decay_t<T>>;

// An array reaches a function as a pointer, without its length; it crosses as a vector.
template <class A>
using Stored = std::conditional_t<std::is_same_v<std::decay_t<A>, std::string_view>, std::string, std::conditional_t<std::is_pointer_v<std::decay_t<A>>, std::vector<std::remove_cv_t<std::remove_pointer_t<std::decay_t<A>>>>, std::decay_t<A>>>;

template <class A>
constexpr bool is_array = std::is_pointer_v<std::decay_t<A>>;

inline std::vector<char>& whole(const std::string& text) {
    static std::deque<std::vector<char>> kept;
    return kept.emplace_back(text.c_str(), text.c_str() + text.size() + 1);
}
template <class T>
std::vector<T>& whole(std::vector<T>& values) {
    return values;
}

// The standard exceptions, the derived before their bases: the first that fits is thrown again on the tests' side.
template <class... E>
struct Exceptions {
    static char number(const std::exception& error) {
        char number = 'a';
        ((dynamic_cast<const E*>(&error) ? true : (++number, false)) || ...);
        return number;
    }
    static void raise(char wanted, const std::string& text) {
        char number = 'a';
        ((number++ == wanted ? throw E(text) : void()), ...);
        throw std::runtime_error(text);
    }
};
using Standard = Exceptions<std::invalid_argument, std::domain_error, std::length_error, std::out_of_range, std::logic_error, std::range_error,
                            std::overflow_error, std::underflow_error, std::runtime_error>;
inline bool rethrow = false;  // whether the tests want the program's exceptions, or fail on any

using Server = std::function<std::string(const std::string&, std::size_t)>;

// Answers calls until the tests are gone; where there are several functions, a message begins with the number of one.
inline int serve_all(const std::vector<Server>& servers, bool numbered = true) {
    std::string message, answer;
    while (receive(message)) {
        try {
            answer = servers.at(numbered ? static_cast<unsigned char>(message.at(0)) : 0)(message, numbered);
        } catch (const std::bad_alloc&) {
            answer = "m";
        } catch (const std::exception& error) {
            answer = std::string("e") + Standard::number(error) + error.what();
        } catch (...) {
            answer = "e?an exception that is no std::exception";
        }
        if (!send(answer)) break;
    }
    return 0;
}

template <class F>
struct Function;

template <class R, class... A>
struct Function<R(A...)> {
    using Arguments = std::tuple<Stored<A>...>;

    static void put_back(Writer& out, Arguments& arguments) {
        std::apply([&](auto&... value) { ((written_back<A> ? Code<Stored<A>>::put(out, value) : void()), ...); }, arguments);
    }

    template <class Argument>
    static decltype(auto) pass(Stored<Argument>& value) {
        if constexpr (is_array<Argument>) return value.data();
        else if constexpr (std::is_same_v<std::decay_t<Argument>, std::string_view>) return std::string_view(value);
        else return static_cast<Argument&&>(value);
    }

    // The candidate's side: answers calls until the tests are gone.
    static int serve(R (*function)(A...)) { return serve_all({server(function)}, false); }

    // Turns a message from its place `at` into the answer to it.
    static Server server(R (*function)(A...)) {
        return [function](const std::string& message, std::size_t at) {
            Reader in{message, at};
            Arguments arguments{Code<Stored<A>>::get(in)...};
            Writer out;
            out.data = "v";
            auto call = [&](auto&... value) -> R { return function(pass<A>(value)...); };
            if constexpr (std::is_void_v<R>) std::apply(call, arguments);
            else Code<std::decay_t<R>>::put(out, std::apply(call, arguments));
            put_back(out, arguments);
            return out.data;
        };
    }

    // The tests' side.
    template <class... V>
    static R call(V&... value) {
        return ask({}, value...);
    }
    template <class... V>
    static R call_number(char number, V&... value) {
        return ask({std::string(1, number)}, value...);
    }
    template <class... V>
    static R ask(Writer out, V&... value);
};

inline void say(const std::string& text) {
    std::string line = std::string("\n") + std::getenv("NONCE") + " " + text + "\n";
    if (::write(2, line.data(), line.size()) < 0) std::_Exit(1);
}

// The tests' verdict is one line on stderr: the nonce, then JSON.
inline void finish(const char* outcome, std::string detail = "") {
    for (char& c : detail)
        if (c < ' ' || c > '~' || c == '"' || c == '\\') c = ' ';
    say(std::string("[\"") + outcome + "\", \"" + detail.substr(0, 500) + "\"]");
    std::_Exit(0);
}

template <class A, class V>
void get_back(Reader& in, V& value) {
    if constexpr (written_back<A>) value = Code<Stored<A>>::get(in);
}

template <class R, class... A>
template <class... V>
R Function<R(A...)>::ask(Writer out, V&... value) {
    try {
        (Code<Stored<A>>::put(out, Stored<A>(value)), ...);
    } catch (const Broken& error) {
        finish("broken", error.what());
    }
    std::string message;
    try {
        if (!send(out.data) || !receive(message)) finish("gone", "the program ended before it answered");
        if (message.empty()) throw Broken("the program's answer is empty");
        if (message[0] == 'm') finish("memory", "std::bad_alloc");
        if (message[0] == 'e' && message.size() > 1 && rethrow) Standard::raise(message[1], message.substr(2));
        if (message[0] != 'v') finish("failed", message.substr(std::min<std::size_t>(message.size(), 2)));
        Reader in{message, 1};
        auto back = [&] { (get_back<A>(in, value), ...); };
        if constexpr (std::is_void_v<R>) {
            back();
        } else {
            auto result = Code<std::decay_t<R>>::get(in);
            back();
            return result;
        }
    } catch (const Broken& error) {
        finish("failed", error.what());
        throw;
    }
}

// Set up before the tests' main, which may lack arguments: SIGPIPE says nothing, and a normal end with status 0 is a pass.
struct Verdict {
    Verdict() {
        std::signal(SIGPIPE, SIG_IGN);
        say("");  // that the tests got going
        ::on_exit([](int status, void*) { finish(status == 0 ? "passed" : "failed", status == 0 ? "" : "exit status " + std::to_string(status)); }, nullptr);
    }
};

}  // namespace moe_wire
